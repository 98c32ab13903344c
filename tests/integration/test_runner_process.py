"""The runner process with a real service (scripted engine), a real ledger and a real browser."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dart_gui import config as config_module
from dart_gui import metrics
from dart_gui.data.manager import DataManager
from dart_gui.runner.clock import SystemClock
from dart_gui.runner.main import open_data, read_token, run, task_names

SRC = Path(__file__).resolve().parents[2] / "src"
NUM_EPISODES = 8


def write_run(folder: Path) -> config_module.Config:
    """A run folder with a model folder for the agent, whose engine is scripted."""
    model = folder / "model"
    model.mkdir(parents=True)
    (model / "preprocessor_config.json").write_text("{}")
    config = config_module.from_dict(
        {
            "model": {"path": str(model)},
            "env": {"num_envs": 4, "tasks": ["miniwob/click-test-2", "miniwob/click-dialog"]},
            "rollout": {"engine": "fake"},
            "runner": {"num_slots": 4, "max_steps": 3},
            "data": {"group_size": 4},
            "train": {"groups_per_step": 4},
        },
        source="test",
    )
    (folder / "config.toml").write_text(config_module.dump(config))
    (folder / "token").write_text("secret")
    return config


def start(module: str, folder: Path) -> subprocess.Popen:
    code = f"import sys, pathlib; from dart_gui.{module}.main import run; "
    code += "sys.exit(run(pathlib.Path(sys.argv[1])))"
    with (folder / f"{module}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"},
        )


def wait_for(what, condition, *, folder, deadline_s=60.0):
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text()[-3000:] for path in folder.glob("*.log"))
            pytest.fail(f"no {what} within {deadline_s} s\n{logs}")
        time.sleep(0.1)


def events(folder, name):
    return [event for event in metrics.read(folder / "metrics.jsonl") if event["event"] == name]


@contextlib.contextmanager
def stopping(*processes):
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.mark.browser
@pytest.mark.slow
def test_runs_episodes_until_it_is_told_to_stop(tmp_path):
    folder = tmp_path / "run"
    config = write_run(folder)
    runner, service = start("runner", folder), start("rollout", folder)
    with stopping(runner, service):
        wait_for("episodes", lambda: len(events(folder, "episode")) >= NUM_EPISODES, folder=folder)
        assert json.loads((folder / "status" / "runner.json").read_text())["pid"] == runner.pid
        stopped_at = time.monotonic()
        runner.send_signal(signal.SIGTERM)
        assert runner.wait(20) == 0
        assert time.monotonic() - stopped_at < 10
    told = {event["trajectory_id"] for event in events(folder, "episode")}
    with contextlib.closing(open_data(folder, config, SystemClock())) as data:
        _check_ledger(data, told)
    assert events(folder, "episode_failed") == []


def _check_ledger(data: DataManager, told: set[str]) -> None:
    assert data.counts()["episodes"]["running"] == 0
    stored = {facts.trajectory_id for facts in data.trajectories()}
    assert told <= stored  # the last ones may have been stored and not told
    trajectory = data.load_trajectory(min(stored))
    hashes = {sha for step in trajectory.steps for sha in step.completion.image_hashes}
    assert all(png.startswith(b"\x89PNG") for png in data.load_images(hashes).values())
    assert trajectory.steps[0].completion.prompt_ids


@pytest.mark.browser
@pytest.mark.slow
def test_survives_kill_9_of_runner_and_service(tmp_path):
    folder = tmp_path / "run"
    config = write_run(folder)
    runner, service = start("runner", folder), start("rollout", folder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(stopping(runner, service))
        wait_for("first episodes", lambda: len(events(folder, "episode")) >= 2, folder=folder)
        runner.kill()
        service.kill()
        runner.wait()
        service.wait()
        (folder / "status" / "rollout.json").unlink()
        # The second runner finds attempts that nobody runs any more.
        count = len(events(folder, "episode"))
        runner, service = start("runner", folder), start("rollout", folder)
        stack.enter_context(stopping(runner, service))
        wait_for(
            "more episodes", lambda: len(events(folder, "episode")) >= count + 4, folder=folder
        )
        runner.terminate()
        assert runner.wait(20) == 0
    with contextlib.closing(open_data(folder, config, SystemClock())) as data:
        assert data.counts()["episodes"]["running"] == 0


def test_refuses_a_run_that_makes_no_sense(tmp_path):
    from dart_gui.errors import AuthError, ConfigError

    with pytest.raises(ConfigError, match="cannot read"):
        run(tmp_path)
    with pytest.raises(AuthError, match="token"):
        read_token(tmp_path, config_module.Config())
    config = config_module.from_dict({"env": {"tasks": ["miniwob/click-tset"]}}, source="test")
    with pytest.raises(ConfigError, match="click-test"):
        task_names(config)
