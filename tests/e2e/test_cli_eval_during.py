"""A run that evaluates while it trains, keeps the best, and stops by its target; then a resume, and
the best checkpoint by its name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dart_gui import metrics

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 400
SETTINGS = {
    "env.tasks": '["miniwob/click-test", "miniwob/click-dialog"]',
    "env.num_envs": "4",
    "runner.num_slots": "4",
    "runner.max_steps": "2",
    "data.group_size": "2",
    "train.groups_per_step": "2",
    "curation.skip_zero_variance": "false",
    "eval.before_after": "false",
    "eval.every": "2",
    "eval.every_episodes": "8",
    "eval.every_envs": "2",
    # One success of eight is enough: the agent that is shipped has one in three.
    "run.target_success": "0.1",
    "run.max_train_steps": "200",
    "alarms.mismatch_kl": "1e-9",  # far below what any two computations agree to
}


def dart_gui(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dart_gui", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_stops_by_its_target_and_keeps_the_best(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "r1"
    overrides = [f"--{key}={value}" for key, value in SETTINGS.items()]
    runs = f"--run.dir={tmp_path / 'runs'}"
    config = "configs/miniwob-tiny.toml"
    output = dart_gui("train", config, "--name", "r1", runs, *overrides)
    events = list(metrics.read(run_dir / "metrics.jsonl"))
    evals = [event for event in events if event["event"] == "eval"]
    steps = [event for event in events if event["event"] == "train_step"]

    # One version, of weights that were newest when it began, while training went on.
    assert {event["phase"] for event in evals} == {"during"}
    assert evals[0]["policy_version"] >= 2
    assert evals[0]["num_episodes"] == 8
    assert evals[0]["num_failed"] == 0
    assert steps[-1]["train_step"] > evals[0]["train_step"], "training did not wait"

    reached = [event for event in evals if event["success_rate"] >= 0.1]
    assert reached[:1] == evals[-1:], "the first that reaches the target is the last one"
    (stop,) = [event for event in events if event["event"] == "stop"]
    assert stop["cause"] == "run.target_success"
    assert f"in the evaluation of policy version {evals[-1]['policy_version']}" in stop["text"]
    assert stop["text"] in output
    assert json.loads((run_dir / "status" / "trainer.json").read_text())["finished"] is False

    best = json.loads((run_dir / "checkpoints" / "best" / "best.json").read_text())
    assert best["policy_version"] == evals[-1]["policy_version"]
    assert best["success_rate"] == evals[-1]["success_rate"]
    assert list((run_dir / "pinned").iterdir()) == []

    alarms = [event for event in events if event["event"] == "alarm"]
    assert ("mismatch_kl", "raised") in {(event["alarm"], event["state"]) for event in alarms}
    report = (run_dir / "report.md").read_text()
    for text in (stop["text"], "checkpoints/best, policy version", "| mismatch_kl | raised |"):
        assert text in report

    again = dart_gui("train", "--resume", "r1", runs)
    assert "is finished" in again
    assert "--run.target_success 0" in again
    assert list(metrics.read(run_dir / "metrics.jsonl")) == events

    dart_gui("eval", "--run", "r1", "--checkpoint", "best", "--episodes", "2", runs)
    (path,) = (tmp_path / "runs" / "eval").glob("*/eval.json")
    (event,) = json.loads(path.read_text())
    assert event["train_step"] == best["train_step"]
    assert "best-v" in (path.parent / "config.toml").read_text()
