"""The rollout process of a run: files, signals, and what is left when it goes."""

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dart_gui.config import dump, from_dict
from dart_gui.errors import AuthError, ConfigError, DataError
from dart_gui.rollout.client import RolloutClient
from dart_gui.rollout.main import read_token, read_updates, read_weights, run, write_json
from dart_gui.types import SamplingParams, WeightsRef

SRC = Path(__file__).resolve().parents[2] / "src"
TOKEN = "a-token-of-this-test"
CODE = "import sys, pathlib; from dart_gui.rollout.main import run; "
CODE += "sys.exit(run(pathlib.Path(sys.argv[1])))"


@pytest.fixture
def run_dir(tmp_path):
    config = from_dict({"rollout": {"engine": "fake", "num_workers": 2}}, source="test")
    (tmp_path / "config.toml").write_text(dump(config))
    (tmp_path / "token").write_text(TOKEN + "\n")
    return tmp_path


@pytest.fixture
def start(run_dir):
    started = []

    def start():
        with (run_dir / "stderr.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", CODE, str(run_dir)],
                env=os.environ | {"PYTHONPATH": str(SRC)},
                stderr=log,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=20)


def ready(run_dir, process):
    """The service's URL once the process has written that it is ready."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, (run_dir / "stderr.log").read_text()
        path = run_dir / "status" / "rollout.json"
        if path.exists():
            status = json.loads(path.read_text())
            if status["pid"] == process.pid:
                return status["url"]
        time.sleep(0.02)
    raise AssertionError("not ready in time")


def workers_of(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def wait_gone(pids):
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "workers outlive the service"
        time.sleep(0.02)


async def complete(url):
    sampling = SamplingParams(temperature=1.0, max_tokens=16, seed=1)
    messages = [{"role": "user", "content": "hello"}]
    async with RolloutClient(url, TOKEN, timeout_s=20) as client:
        await client.wait_ready(10)
        return await client.complete(messages, {}, sampling, trajectory_id="t")


async def publish(url, weights):
    async with RolloutClient(url, TOKEN, timeout_s=20) as client:
        await client.publish(weights)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_and_its_workers(run_dir, start, number):
    process = start()
    url = ready(run_dir, process)
    assert asyncio.run(complete(url)).policy_version == 0
    workers = workers_of(process.pid)
    assert len(workers) == 2
    process.send_signal(number)
    assert process.wait(timeout=10) == 0
    wait_gone(workers)
    assert "Traceback" not in (run_dir / "stderr.log").read_text()


def test_a_service_that_is_killed_leaves_no_worker_and_comes_back_where_it_was(run_dir, start):
    process = start()
    url = ready(run_dir, process)
    weights = WeightsRef(policy_version=3, path=str(run_dir))
    asyncio.run(publish(url, weights))
    workers = workers_of(process.pid)
    process.kill()
    process.wait()
    wait_gone(workers)
    again = start()
    assert ready(run_dir, again) == url
    assert asyncio.run(complete(url)).policy_version == 3
    assert read_weights(run_dir / "status" / "weights.json") == weights
    deadline = time.monotonic() + 30
    while read_updates(run_dir / "status" / "updates.json")[0].state != "done":
        assert time.monotonic() < deadline, "the update goes on after the restart"
        time.sleep(0.02)


def test_a_signal_during_the_start_ends_it(run_dir, start):
    process = start()
    deadline = time.monotonic() + 20
    while not (workers := workers_of(process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.terminate()
    process.wait(timeout=10)
    wait_gone(workers)
    assert not (run_dir / "status" / "rollout.json").exists()


def test_a_missing_or_empty_token_is_an_auth_error(run_dir):
    config = from_dict({}, source="test")
    assert read_token(run_dir, config) == TOKEN
    (run_dir / "token").write_text("")
    with pytest.raises(AuthError, match="is empty"):
        read_token(run_dir, config)
    (run_dir / "token").unlink()
    with pytest.raises(AuthError, match="cannot read the token"):
        run(run_dir)


def test_a_folder_that_is_no_run_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        run(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"path": "x"}', '{"policy_version": {}, "path": ""}'])
def test_a_corrupt_weights_file_is_a_data_error(tmp_path, text):
    path = tmp_path / "weights.json"
    assert read_weights(path) is None
    path.write_text(text)
    with pytest.raises(DataError, match="Delete it"):
        read_weights(path)


@pytest.mark.parametrize("text", ["{", "[]", '{"updates": [{}]}', '{"updates": 3}'])
def test_a_corrupt_file_of_updates_is_a_data_error(tmp_path, text):
    path = tmp_path / "updates.json"
    assert read_updates(path) == []
    path.write_text(text)
    with pytest.raises(DataError, match="Delete it"):
        read_updates(path)


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "status" / "x.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 2}
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]
    assert stat.S_ISREG(path.stat().st_mode)
