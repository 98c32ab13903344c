"""What ends with the guard: its command, and all that the command has started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

GUARD = Path(__file__).resolve().parents[2] / "src/dart_gui/rollout/engines/vllm_guard.py"
# a server in two processes, the second of which ignores SIGTERM like an engine that hangs
SCRIPT = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True);"
    "time.sleep(600)"], stdout=subprocess.PIPE)
child.stdout.readline()
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def guarded():
    process = subprocess.Popen(
        [sys.executable, "-I", str(GUARD), "0.5", sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process, [int(pid) for pid in process.stdout.readline().split()]
        process.kill()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_gone(pids):
    deadline = time.monotonic() + 60
    while any(map(alive, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_group_ends_when_the_pipe_closes(guarded):
    process, pids = guarded
    assert all(map(alive, pids))
    process.stdin.close()
    wait_gone(pids)
    process.wait(60)


def test_what_outlives_the_command_ends_with_it(guarded):
    process, (leader, child) = guarded
    os.kill(leader, signal.SIGKILL)
    wait_gone([child])
    assert process.wait(60) == 128 + signal.SIGKILL


def test_the_status_of_the_command_is_passed_on():
    command = [sys.executable, "-I", str(GUARD), "0.5", sys.executable, "-c", "raise SystemExit(3)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait(60) == 3
