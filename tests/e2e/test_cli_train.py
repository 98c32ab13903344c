"""A whole training run through the command line: real browser, real model, Ctrl-C, resume."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dart_gui import metrics

pytestmark = [pytest.mark.browser, pytest.mark.slow]
REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = {
    "env.tasks": '["miniwob/click-test", "miniwob/click-dialog"]',
    "env.num_envs": "4",
    "runner.num_slots": "4",
    "runner.max_steps": "2",
    "data.group_size": "2",
    "train.groups_per_step": "2",
    "train.checkpoint_every": "2",
    "curation.skip_zero_variance": "false",
    "eval.before_after": "false",
    "launch.tensorboard": "false",
}
DEADLINE_S = 240


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "dart_gui", "train", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train_steps(run_dir: Path) -> list[dict]:
    return [e for e in metrics.read(run_dir / "metrics.jsonl") if e["event"] == "train_step"]


def wait_for_train_step(run_dir: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not train_steps(run_dir):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "no train step in time"
        time.sleep(0.1)


def query(run_dir: Path, sql: str) -> list[tuple]:
    with sqlite3.connect(run_dir / "ledger.sqlite") as connection:
        return connection.execute(sql).fetchall()


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=DEADLINE_S)
    return output


def test_ctrl_c_and_resume_continue_a_run(tmp_path):
    overrides = [text for key, value in SETTINGS.items() for text in (f"--{key}", value)]
    run_dir = tmp_path / "runs" / "first"
    process = start(
        "configs/miniwob-tiny.toml",
        "--name",
        "first",
        "--run.dir",
        str(tmp_path / "runs"),
        "--run.max_train_steps",
        "4",
        *overrides,
    )
    wait_for_train_step(run_dir, process)
    process.send_signal(signal.SIGINT)
    output = finish(process)
    assert process.returncode == 130, output
    assert "--resume" in output
    done_before = len(train_steps(run_dir))

    resumed = start("--resume", str(run_dir))
    output = finish(resumed)
    assert resumed.returncode == 0, output
    steps = [step["train_step"] for step in train_steps(run_dir)]
    assert steps == list(range(1, 5)), "each train step once, none repeated"
    assert done_before < len(steps)
    versions = [row[0] for row in query(run_dir, "SELECT version FROM policy_version")]
    assert len(versions) == len(set(versions)), "policy_version repeats"
    used = [row[0] for row in query(run_dir, "SELECT used FROM rollout_run")]
    assert max(used) == 1
    assert sum(used) == sum(step["num_trajectories"] for step in train_steps(run_dir))
    assert max(step["staleness_max"] for step in train_steps(run_dir)) <= 3
    for name in ("report.md", "config.toml"):
        assert (run_dir / name).stat().st_size > 0
    assert json.loads((run_dir / "status" / "trainer.json").read_text())["finished"] is True
