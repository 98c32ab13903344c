"""Bad input through the command line: one paragraph, exit code 1, no trace, nothing written."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "miniwob-tiny.toml"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What the checks before a run look at; never loaded."""
    folder = tmp_path / "model"
    folder.mkdir()
    architecture = {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps({**architecture, "model_type": "qwen2_5_vl"}))
    for name in ("tokenizer.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def browser(tmp_path: Path) -> Path:
    path = tmp_path / "chromium-headless-shell"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def good(tmp_path: Path, model: Path, browser: Path) -> list[str]:
    """Arguments with which nothing is wrong."""
    return [
        str(CONFIG),
        f"--model.path={model}",
        f"--env.browser={browser}",
        f"--run.dir={tmp_path / 'runs'}",
    ]


def dart_gui(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dart_gui", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )


def assert_refused(tmp_path: Path, *arguments: str) -> str:
    done = dart_gui(*arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("dart-gui: error: ")
    assert done.stderr.count("\n") == 1, "one paragraph"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists(), "nothing half-written"
    return done.stderr


def test_an_unknown_task(tmp_path: Path, good: list[str]) -> None:
    tasks = '--env.tasks=["miniwob/click-tset"]'
    error = assert_refused(tmp_path, "train", *good, tasks)
    assert "did you mean miniwob/click-test?" in error
    error = assert_refused(tmp_path, "play", "click-buton", *good)
    assert "did you mean miniwob/click-button?" in error


def test_an_unknown_suite_or_agent(tmp_path: Path, good: list[str]) -> None:
    error = assert_refused(tmp_path, "train", *good, "--env.suite=miniwop")
    assert "did you mean miniwob?" in error
    error = assert_refused(tmp_path, "train", *good, "--agent.name=uitars")
    assert "did you mean ui-tars?" in error
    error = assert_refused(tmp_path, "env", "check", str(tmp_path / "shop.py:SUITE"))
    assert f"there is no file {tmp_path / 'shop.py'}" in error


def test_a_missing_browser(tmp_path: Path, good: list[str]) -> None:
    error = assert_refused(tmp_path, "train", *good, "--env.browser=/no/such/chromium")
    assert "/no/such/chromium" in error


def test_an_unreadable_configuration(tmp_path: Path) -> None:
    error = assert_refused(tmp_path, "train", str(tmp_path / "no.toml"))
    assert "no.toml" in error
    assert "No such file" in error
    (tmp_path / "bad.toml").write_text("[train\n")
    assert "not valid TOML" in assert_refused(tmp_path, "train", str(tmp_path / "bad.toml"))
    assert "configs/miniwob-tiny.toml" in assert_refused(tmp_path, "train")


def test_an_unknown_key(tmp_path: Path, good: list[str]) -> None:
    error = assert_refused(tmp_path, "train", *good, "--train.leaning_rate", "1")
    assert "unknown key train.leaning_rate" in error


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_port_that_is_taken(tmp_path: Path, good: list[str], taken_port: int) -> None:
    error = assert_refused(tmp_path, "train", *good, f"--rollout.port={taken_port}")
    assert f"port {taken_port} on 127.0.0.1 is taken" in error


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_model_folder_that_is_not_one(
    tmp_path: Path, good: list[str], model: Path, missing: str
) -> None:
    (model / missing).unlink()
    error = assert_refused(tmp_path, "train", *good)
    assert str(model) in error
    assert "model.path" in error


def test_a_model_folder_that_does_not_exist(tmp_path: Path, good: list[str]) -> None:
    for command in (["train"], ["eval"], ["play", "click-test"]):
        error = assert_refused(tmp_path, *command, *good, "--model.path", "/no/model")
        assert "/no/model" in error


def test_a_run_folder_that_cannot_be_written(tmp_path: Path, good: list[str]) -> None:
    (tmp_path / "file").write_text("")
    error = assert_refused(tmp_path, "train", *good, f"--run.dir={tmp_path / 'file' / 'runs'}")
    assert "run.dir" in error


def test_the_wrong_run(tmp_path: Path) -> None:
    runs = f"--run.dir={tmp_path / 'runs'}"
    assert "has no run" in assert_refused(tmp_path, "train", "--resume", runs)
    assert "'r9'" in assert_refused(tmp_path, "train", "--resume", "r9", runs)
    assert "'r9'" in assert_refused(tmp_path, "eval", "--run", "r9", runs)
    assert "'r9'" in assert_refused(tmp_path, "report", "r9", runs)


def test_a_module_outside_of_a_run(tmp_path: Path) -> None:
    for module in ("rollout", "runner", "trainer"):
        done = dart_gui(module, "--run-dir", str(tmp_path))
        assert done.returncode == 78
        assert "is not the folder of a run" in done.stderr
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_trace(tmp_path: Path) -> None:
    done = dart_gui("train", str(tmp_path / "no.toml"), "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
