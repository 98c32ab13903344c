"""Real processes under the state machine: small Python scripts that misbehave on purpose."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dart_gui.launch.orphan import SUPERVISOR_PID
from dart_gui.launch.process import GroupHandle, ManagedProcess, ProcessSpec, ProcessState

SRC = Path(__file__).resolve().parents[2] / "src"
DEADLINE_S = 30.0


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """False for a zombie as well."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


class Script:
    def __init__(self, folder: Path, code: str, *, max_restarts: int = 0) -> None:
        self.log = folder / "script.log"
        env = {**os.environ, "PYTHONPATH": str(SRC), "FOLDER": str(folder)}
        self.process = ManagedProcess(
            ProcessSpec(
                name="script",
                spawn=lambda: GroupHandle([sys.executable, "-c", code], self.log, env),
                log=self.log,
                max_restarts=max_restarts,
                stop_timeout_s=0.5,
            ),
            now=time.monotonic,
        )

    def until(self, state: ProcessState) -> None:
        def reached() -> bool:
            self.process.tick()
            return self.process.state is state

        until(reached, f"state {state}, it is {self.process.state}")

    def prints(self, text: str) -> None:
        until(lambda: self.log.exists() and text in self.log.read_text(), f"{text!r} in the log")


@pytest.fixture
def scripts() -> Iterator[list[Script]]:
    started: list[Script] = []
    yield started
    for script in started:
        script.process.kill()


@pytest.fixture
def start(tmp_path: Path, scripts: list[Script]) -> Callable[..., Script]:
    def start_script(code: str, **options: int) -> Script:
        script = Script(tmp_path, code, **options)
        scripts.append(script)
        script.process.start()
        return script

    return start_script


def test_output_goes_to_the_log_across_restarts(start: Callable[..., Script]) -> None:
    script = start("print('hello', flush=True); raise SystemExit(3)", max_restarts=1)
    script.until(ProcessState.FAILED)
    assert script.process.exit_code == 3
    assert script.log.read_text() == "hello\nhello\n"


def test_a_process_that_ignores_sigterm_is_killed(start: Callable[..., Script]) -> None:
    script = start(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up', flush=True); time.sleep(600)"
    )
    script.prints("up")
    script.process.stop()
    script.until(ProcessState.STOPPED)
    assert script.process.exit_code == -signal.SIGKILL


def test_a_grandchild_does_not_survive_the_death_of_its_parent(
    start: Callable[..., Script],
) -> None:
    script = start(
        "import subprocess, sys, os\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('child', child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    script.prints("child")
    grandchild = int(script.log.read_text().split()[1])
    assert is_alive(grandchild)
    script.until(ProcessState.FAILED)
    until(lambda: not is_alive(grandchild), "the end of the grandchild")


MODULE = """
import os, sys, time
from dart_gui.launch.orphan import end_with_supervisor
import signal
if 'deaf' in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Like a browser: in a session of its own, where no signal to the module's group arrives.
    import subprocess
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'],
                             start_new_session=True)
    print('up', child.pid, flush=True)
end_with_supervisor(grace_s=0.5, poll_s=0.1)
print('up', os.getpid(), flush=True)
time.sleep(600)
"""

SUPERVISOR = f"""
import os, subprocess, sys, time
os.environ[{SUPERVISOR_PID!r}] = str(os.getpid())
for arguments in (['ok'], ['deaf']):
    subprocess.Popen([sys.executable, '-c', {MODULE!r}, *arguments], process_group=0)
time.sleep(600)
"""


def test_no_module_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("wb") as file:
        supervisor = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR],
            stdout=file,
            env={**os.environ, "PYTHONPATH": str(SRC)},
        )
    try:
        until(lambda: output.read_text().count("up") == 3, "both modules and a child")
        modules = [int(line.split()[1]) for line in output.read_text().splitlines()]
        assert all(map(is_alive, modules))
    finally:
        supervisor.kill()
        supervisor.wait()
    try:
        until(lambda: not any(map(is_alive, modules)), "the end of the modules")
    finally:
        for pid in filter(is_alive, modules):
            os.kill(pid, signal.SIGKILL)
