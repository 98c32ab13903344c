"""Memory figures, and what doctor and --dry-run say of a vLLM configuration."""

import json
import math
import shutil
from pathlib import Path

import pytest

from dart_gui.cli import main
from dart_gui.config import load
from dart_gui.errors import SetupError
from dart_gui.launch import vllm_checks
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


def test_the_dry_run_says_what_fits(capsys, tmp_path, uitars):
    path = uitars().model.path
    assert main(["train", str(UITARS), "--dry-run", f"--model.path={path}"]) == 0
    out = capsys.readouterr().out
    assert "# vllm: 1 x A100, H100 (80 GB): " in out
    assert main(["train", str(UITARS), "--dry-run", f"--model.path={tmp_path}/none"]) == 0
    assert "# vllm: not known yet: " in capsys.readouterr().out
