"""``dart-gui eval`` and ``play`` against real pages: by random clicks, and through the service."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.browser


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Enough of a model folder for the fake engine, which scripts one click."""
    folder = tmp_path / "model"
    folder.mkdir()
    architecture = {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}
    (folder / "config.json").write_text(json.dumps({**architecture, "model_type": "qwen2_5_vl"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    replies = ["Thought: Click.\nAction: click(start_box='(40,80)')"]
    (folder / "fake_engine.json").write_text(json.dumps({"replies": replies}))
    return folder


@pytest.fixture
def arguments(tmp_path: Path, model: Path) -> list[str]:
    return [
        str(ROOT / "configs" / "miniwob-tiny.toml"),
        f"--model.path={model}",
        f"--run.dir={tmp_path / 'runs'}",
        "--rollout.engine=fake",
        '--env.tasks=["miniwob/click-test", "miniwob/click-dialog"]',
        "--env.num_envs=2",
        "--runner.num_slots=2",
        "--runner.max_steps=1",
    ]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dart_gui", *arguments]


ENV = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120"}


def dart_gui(*arguments: str) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=180, env=ENV)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def results(tmp_path: Path) -> dict[str, object]:
    (path,) = (tmp_path / "runs" / "eval").glob("*/eval.json")
    (event,) = json.loads(path.read_text())
    return event


def test_the_success_rate_of_random_clicks(tmp_path: Path, arguments: list[str]) -> None:
    output = dart_gui("eval", *arguments, "--random", "--episodes", "6")
    assert re.search(r"click-test +\d+\.\d \(", output)
    event = results(tmp_path)
    assert event["phase"] == "floor"
    assert event["num_episodes"] == 6
    assert event["num_failed"] == 0
    assert sorted(event["per_task"]) == ["miniwob/click-dialog", "miniwob/click-test"]
    assert not (tmp_path / "runs" / "latest").exists(), "an evaluation is not a run"


def test_a_model_is_evaluated_through_the_service(tmp_path: Path, arguments: list[str]) -> None:
    dart_gui("eval", *arguments, "--greedy", "--episodes", "4")
    event = results(tmp_path)
    assert (event["phase"], event["temperature"]) == ("eval", 0.0)
    assert event["stop_reasons"]
    assert event["policy_version"] == 0


def test_one_episode_with_pictures(tmp_path: Path, arguments: list[str]) -> None:
    out = tmp_path / "out"
    output = dart_gui(
        "play", "click-test", *arguments, "--random", "--seed", "3", "--out", str(out)
    )
    assert "instruction: Click the button." in output
    assert "ended by" in output
    assert (out / "episode.md").is_file()
    assert len(list(out.glob("step_*.png"))) == 1


def test_ctrl_c_ends_an_evaluation_without_a_trace(tmp_path: Path, arguments: list[str]) -> None:
    process = subprocess.Popen(
        command("eval", *arguments, "--random", "--episodes", "4000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
    )
    status = lambda: list((tmp_path / "runs" / "eval").glob("*/status/evaluator.json"))  # noqa: E731
    deadline = time.monotonic() + 120
    while not any("succeeded" in path.read_text() for path in status()):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == ""
