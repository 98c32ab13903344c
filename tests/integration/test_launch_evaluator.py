"""The process of an evaluation while training: pages and a rollout service of its own, real; the
engine is the fake one, whose model folder is the pinned weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dart_gui import metrics
from dart_gui.config import Config
from dart_gui.launch import run_folder
from dart_gui.launch.plan import EvalJob
from dart_gui.launch.run_folder import RunFolder
from dart_gui.types import WeightsRef

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.browser


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    config = Config.model_validate(
        {
            "model": {"path": str(ROOT / "models" / "tiny-agent")},
            "env": {"tasks": ["miniwob/click-test", "miniwob/click-dialog"], "num_envs": 40},
            "rollout": {"engine": "fake", "num_workers": 2},
            "runner": {"num_slots": 40, "max_steps": 2},
            "eval": {"every": 5, "every_episodes": 6, "every_envs": 2},
        }
    )
    return run_folder.create(config, tmp_path / "r1")


def pinned_weights(folder: RunFolder) -> Path:
    """The shipped folder, as links, which the fake engine takes for its weights."""
    path = folder.pinned / "v000008-step-000007"
    path.mkdir(parents=True)
    for file in (ROOT / "models" / "tiny-agent").iterdir():
        (path / file.name).symlink_to(file)
    return path


def evaluate(folder: RunFolder, path: Path) -> subprocess.CompletedProcess[str]:
    job = EvalJob(
        phase="during",
        temperature=1.0,
        train_step=7,
        weights=WeightsRef(policy_version=8, path=str(path)),
    )
    arguments = ["evaluator", "--run-dir", str(folder.path), *job.arguments]
    return subprocess.run(
        [sys.executable, "-m", "dart_gui", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_pinned_weights_are_evaluated_without_the_run(folder: RunFolder) -> None:
    done = evaluate(folder, pinned_weights(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    (event,) = metrics.read(folder.metrics)
    assert (event["event"], event["phase"], event["process"]) == ("eval", "during", "evaluator")
    assert (event["policy_version"], event["train_step"]) == (8, 7)
    assert event["num_episodes"] == 6
    assert event["num_failed"] == 0
    assert sorted(event["per_task"]) == ["miniwob/click-dialog", "miniwob/click-test"]
    status = folder.status("evaluator")["text"]
    assert status.startswith("(evaluating policy version 8: 6/6, ")
    # The run's own service was neither needed nor replaced.
    assert folder.status("rollout") == {}


def test_weights_that_are_not_there_are_an_error(folder: RunFolder, tmp_path: Path) -> None:
    done = evaluate(folder, tmp_path / "nothing")
    assert done.returncode == 1
    assert "dart-gui: error: " in done.stderr
    assert list(metrics.read(folder.metrics)) == []
