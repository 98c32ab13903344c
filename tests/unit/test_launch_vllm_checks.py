"""Memory figures of serving and training, and what doctor and --dry-run say of a vLLM configuration."""

import json
import math
import shutil
from pathlib import Path

import pytest

from dart_gui.cli import main
from dart_gui.config import load
from dart_gui.errors import SetupError
from dart_gui.launch import training_memory, vllm_checks
from dart_gui.model.adapter_files import adapter_shapes
from dart_gui.model.memory import read_size, size_of
from dart_gui.model.weight_files import read_shapes

ROOT = Path(__file__).resolve().parents[2]
TINY_AGENT = ROOT / "models" / "tiny-agent"
UITARS = ROOT / "configs" / "uitars-7b.toml"
# dimensions of UI-TARS-1.5-7B, in the spelling of its config.json
UITARS_CONFIG = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "in_chans": 3,
    },
}


def test_parameters_are_counted_exactly():
    counted = sum(math.prod(shape) for shape in read_shapes(TINY_AGENT).values())
    assert read_size(TINY_AGENT).num_parameters == counted


def test_the_size_of_uitars_is_that_of_its_release():
    size = size_of(UITARS_CONFIG)
    assert size.num_parameters == 8_292_166_656  # as its safetensors index has it
    assert size.kv_bytes_per_token("bfloat16") == 56 * 1024


def test_more_memory_holds_more_and_too_little_holds_nothing():
    size = size_of(UITARS_CONFIG)

    def tokens(gpu_gb, num_gpus=1):
        return size.cached_tokens(gpu_gb, dtype="bfloat16", num_gpus=num_gpus, utilization=0.9)

    assert tokens(16) == 0
    assert 0 < tokens(40) < tokens(80) < tokens(80, 2)


def test_adapter_parameters_are_counted_exactly():
    """By hand, of rank 2 on one projection: 28 layers of A [2, 3584] and B [512, 2]."""
    size, rank, targets = size_of(UITARS_CONFIG), 8, ("q_proj", "up_proj")
    assert size.num_adapter_parameters(2, ["v_proj"]) == 28 * 2 * (3584 + 512)
    counted = sum(
        math.prod(shape) for shape in adapter_shapes(UITARS_CONFIG, rank, targets).values()
    )
    assert size.num_adapter_parameters(rank, targets) == counted


def test_what_is_trained_by_hand():
    """8.292 billion parameters in bfloat16: 16.584 GB, four or five times over; or once, and 16 bytes
    for each of the adapter's 28 * (3584 + 512) * 64."""
    size = size_of(UITARS_CONFIG)

    def gb(rank, reference):
        return size.trained_gb("bfloat16", rank=rank, targets=["k_proj"], reference=reference)

    assert [gb(0, False), gb(0, True)] == pytest.approx([66.337, 82.922], abs=1e-3)
    adapter = 28 * (3584 + 512) * 64 * 16 / 1e9
    assert [gb(64, False), gb(64, True)] == pytest.approx([16.5843 + adapter] * 2, abs=1e-3)


def test_what_layers_keep_is_what_was_counted():
    """381 and 471 kB a token and layer, with checkpointing 7 kB and one whole layer."""
    size = size_of(UITARS_CONFIG)

    def per_token(lora, checkpointing):
        gb = size.activations_gb(
            "bfloat16", num_tokens=1, num_replies=0, lora=lora, checkpointing=checkpointing
        )
        return gb * 1e9

    assert per_token(False, False) == pytest.approx(28 * 380_936, rel=1e-3)
    assert per_token(True, False) == pytest.approx(28 * 471_048, rel=1e-3)
    assert per_token(True, True) == pytest.approx(28 * 7168 + 471_048, rel=1e-3)


@pytest.fixture
def uitars(tmp_path):
    """The shipped configuration over a folder with the model's dimensions and image limits."""
    folder = tmp_path / "UI-TARS-1.5-7B"
    shutil.copytree(TINY_AGENT, folder)
    (folder / "config.json").write_text(json.dumps(UITARS_CONFIG))
    limits = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(limits))
    return lambda *more: load(UITARS, [f"model.path={folder}", *more])


def test_the_figures_in_the_shipped_configuration_are_those_that_are_computed(uitars):
    text = UITARS.read_text()
    first, *kinds = vllm_checks.memory_lines(uitars())
    assert "8.29 billion parameters, 16.6 GB as bfloat16; 56 KiB" in first
    assert "8.29 billion parameters, 16.6 GB in bfloat16; 56 KiB" in text
    counts = [line.rpartition(": ")[2].split()[0] for line in kinds]
    rows = [line.split() for line in text.splitlines() if " GB   " in line]
    assert [row[row.index("GB") + 1].rstrip(":") for row in rows][1:] == counts[1:]
    assert counts[0] == "too"
    two = vllm_checks.memory_lines(uitars("vllm.tensor_parallel_size=2"))[1]
    assert f"hold {two.rpartition(': ')[2].split()[0]}\n" in text
    assert "2691 tokens" in vllm_checks.check_context(uitars())


def test_the_figures_of_training_in_the_shipped_configuration_are_computed_too(uitars):
    text = " ".join(UITARS.read_text().split("\n# "))
    whole = [text, (ROOT / "docs" / "cluster.md").read_text().replace("\n  ", " ")]
    found = training_memory.describe(uitars())
    assert found.startswith("on a GPU 41.5 GB (17.9 GB the weights")
    assert found.endswith("18.6 GB activations of 24576 tokens, 5 GB set aside): fits L40S (48 GB)")
    assert all("41.5 GB" in each for each in whole)
    assert "17.9 GB for the weights" in text
    assert "18.6 GB for the activations of a micro-batch of 24576 tokens" in text
    full = training_memory.describe(uitars("train.lora_rank=0"))
    assert full.startswith("on a GPU 87.8 GB")
    assert all("87.8 GB" in each for each in whole)
    kept = training_memory.describe(uitars("train.activation_checkpointing=false"))
    assert kept.startswith("on a GPU 349.1 GB")
    assert kept.endswith("fits no single GPU; see train.activation_checkpointing")
    assert "349.1 GB" in text


def test_a_context_that_does_not_hold_the_screens_is_found(uitars):
    small = uitars("rollout.max_context=8192")
    with pytest.raises(SetupError, match=r"raise rollout\.max_context"):
        vllm_checks.check_context(small)


def test_a_missing_server_is_found(tmp_path, uitars):
    missing = uitars(f"vllm.executable={tmp_path / 'none'}")
    with pytest.raises(SetupError, match="is not there"):
        vllm_checks.check_servers(missing)
    for url in ("http://127.0.0.1:9", f"unix:{tmp_path}/none.sock"):
        gone = uitars(f'vllm.urls=["{url}"]', "rollout.num_workers=1")
        with pytest.raises(SetupError, match=r"vllm\.urls"):
            vllm_checks.check_servers(gone)


def test_an_executable_says_its_version(tmp_path, uitars):
    fake = tmp_path / "vllm"
    fake.write_text("#!/bin/sh\necho noise\necho 9.8.7\n")
    fake.chmod(0o755)
    assert "vLLM 9.8.7" in vllm_checks.check_servers(uitars(f"vllm.executable={fake}"))


def test_without_vllm_nothing_is_asked_for():
    config = load(ROOT / "configs" / "miniwob-tiny.toml")
    assert "not used" in vllm_checks.check_servers(config)
    assert "not used" in vllm_checks.check_memory(config)
    assert vllm_checks.dry_run_lines(config) == []
    assert training_memory.dry_run_lines(config) == []
    (line,) = training_memory.dry_run_lines(
        load(ROOT / "configs" / "miniwob-tiny.toml", ["train.lora_rank=8"])
    )
    assert line.startswith("# training: on a GPU ")


def test_the_dry_run_says_what_fits(capsys, tmp_path, uitars):
    path = uitars().model.path
    assert main(["train", str(UITARS), "--dry-run", f"--model.path={path}"]) == 0
    out = capsys.readouterr().out
    assert "# vllm: 1 x A100, H100 (80 GB): " in out
    assert "# training: on a GPU 41.5 GB" in out
    assert main(["train", str(UITARS), "--dry-run", f"--model.path={tmp_path}/none"]) == 0
    assert "# vllm: not known yet: " in capsys.readouterr().out
