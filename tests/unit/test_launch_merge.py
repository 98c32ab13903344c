"""``dart-gui merge``, and what of a configuration with LoRA is refused before anything starts."""

import json
import shutil
from pathlib import Path

import pytest

from dart_gui.cli import main
from dart_gui.config import from_dict
from dart_gui.errors import ConfigError
from dart_gui.launch import preflight
from dart_gui.model.folder import check_model_folder, is_adapter
from dart_gui.model.lora import LoraPolicy
from dart_gui.train.checkpoint_files import weights_problems

TINY_AGENT = Path(__file__).resolve().parents[2] / "models" / "tiny-agent"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run with two checkpoints, of adapters that add 0.01 and 0.02 times a sum of A's rows."""
    runs = tmp_path_factory.mktemp("runs")
    policy = LoraPolicy(TINY_AGENT, rank=2, alpha=2, targets=("o_proj",), device="cpu")
    for step in (1, 2):
        for name, parameter in policy.network.named_parameters():
            if ".lora_B." in name:
                parameter.data.fill_(0.01 * step)
        policy.save(runs / "mine" / "checkpoints" / f"step-{step:06d}")
    (runs / "mine" / "config.toml").write_text("")
    return runs


def merge(runs, *arguments):
    return main(["merge", *arguments, f"--run.dir={runs}"])


def added(folder):
    """What was added to the projection, entry by entry."""
    from safetensors.torch import load_file

    name = "model.layers.0.self_attn.o_proj.weight"
    merged, base = (load_file(each / "model.safetensors")[name] for each in (folder, TINY_AGENT))
    return merged - base


def sum_of_rows(adapter):
    from safetensors.torch import load_file

    name = "base_model.model.model.language_model.layers.0.self_attn.o_proj.lora_A.weight"
    return load_file(adapter / "adapter_model.safetensors")[name].sum(0)


@pytest.mark.parametrize(
    ("arguments", "step"),
    [(["mine"], 2), (["mine", "--checkpoint", "step-000001"], 1), (["FOLDER"], 1)],
)
def test_a_checkpoint_becomes_a_plain_model(run_dir, tmp_path, capsys, arguments, step):
    adapter = run_dir / "mine" / "checkpoints" / f"step-{step:06d}"
    words = [str(adapter) if word == "FOLDER" else word for word in arguments]
    out = tmp_path / "models" / "out"
    assert merge(run_dir, words[0], str(out), *words[1:]) == 0
    check_model_folder(out)
    assert not is_adapter(out)
    expected = (0.01 * step * sum_of_rows(adapter)).expand(128, 128)
    assert float((added(out) - expected).abs().max()) < 1e-6
    assert "merged into" in capsys.readouterr().out
    assert merge(run_dir, words[0], str(out), *words[1:]) == 1
    assert "exists already" in capsys.readouterr().err


def test_what_is_not_there_is_said(run_dir, tmp_path, capsys):
    assert merge(run_dir, "other", str(tmp_path / "out")) == 1
    assert "cannot find the run 'other'" in capsys.readouterr().err
    assert merge(run_dir, "mine", str(tmp_path / "out"), "--checkpoint", "best") == 1
    assert "no checkpoint best" in capsys.readouterr().err


def test_an_adapter_that_lost_its_base_is_found(run_dir, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    shutil.copytree(run_dir / "mine" / "checkpoints" / "step-000001", adapter)
    assert list(weights_problems(adapter)) == []
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "/no"}))
    (problem,) = weights_problems(adapter)
    assert "/no" in problem
    assert merge(run_dir, str(adapter), str(tmp_path / "out")) == 1
    assert "/no" in capsys.readouterr().err


def test_an_adapter_that_is_cut_off_is_found(run_dir, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(run_dir / "mine" / "checkpoints" / "step-000001", adapter)
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (problem,) = weights_problems(adapter)
    assert "cut off" in problem


def config(path=TINY_AGENT, **train):
    return from_dict({"model": {"path": str(path)}, "train": train}, source="test")


def test_an_adapter_is_not_trained_on_an_adapter(run_dir):
    adapter = run_dir / "mine" / "checkpoints" / "step-000001"
    preflight.check_lora(config(lora_rank=4))
    preflight.check_lora(config(adapter))  # all parameters, of what comes of merging
    with pytest.raises(ConfigError, match="dart-gui merge"):
        preflight.check_lora(config(adapter, lora_rank=4))


@pytest.mark.parametrize(
    "changed", [{"lora_rank": 8}, {"lora_rank": 0}, {"lora_alpha": 5}, {"lora_targets": ["q_proj"]}]
)
def test_a_run_keeps_its_kind_of_adapter(changed):
    before = config(lora_rank=4)
    preflight.check_lora(config(lora_rank=4, lr=1.0), before)
    with pytest.raises(ConfigError, match="Start a new run"):
        preflight.check_lora(config(**{"lora_rank": 4} | changed), before)
