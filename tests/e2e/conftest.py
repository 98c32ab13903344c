"""A training run through the command line whose processes can be found and killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dart_gui import metrics
from dart_gui.launch.orphan import descendants

REPOSITORY = Path(__file__).resolve().parents[2]
DEADLINE_S = 240.0  # on a machine that does much else; on an idle one nothing takes 20 s
POLL_S = 0.05

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
    "launch.max_restarts": "50",
    "run.max_time_s": "36000",
}


class Process(NamedTuple):
    """A process for good: a number that is given again does not count as it."""

    pid: int
    started: str  # clock ticks since boot, from /proc

    @property
    def is_alive(self) -> bool:
        return find(self.pid) == self

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def find(pid: int) -> Process | None:
    """None where there is none, or only its exit status is left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else Process(pid, fields[19])


def role_of(pid: int) -> str | None:
    """What a process is in a run: a module's name, ``worker``, ``browser`` or ``renderer``."""
    try:
        # A renderer writes its command line anew, with blanks between the words.
        words = re.split(r"[\0 ]", Path(f"/proc/{pid}/cmdline").read_text())
    except OSError:
        return None
    if "dart_gui.rollout.worker" in words:
        return "worker"
    if "--run-dir" in words and "dart_gui" in words:
        return words[words.index("dart_gui") + 1]
    if "--type=renderer" in words:
        return "renderer"
    is_browser = "--remote-debugging-pipe" in words and "chrom" in words[0].lower()
    return "browser" if is_browser and not any(w.startswith("--type=") for w in words) else None


class TrainingRun:
    """One run over all of its launches; ``supervisor`` is the process of the present one."""

    def __init__(self, runs_dir: Path, name: str) -> None:
        self.folder = runs_dir / name
        self._runs_dir = runs_dir
        self.supervisor: subprocess.Popen[bytes] | None = None

    @property
    def console(self) -> Path:
        return self._runs_dir / f"{self.folder.name}.console"

    def start(self, **settings: str) -> None:
        overrides = [f"--{key}={value}" for key, value in {**SETTINGS, **settings}.items()]
        name, runs = self.folder.name, str(self._runs_dir)
        self._launch("configs/miniwob-tiny.toml", "--name", name, f"--run.dir={runs}", *overrides)

    def resume(self, *overrides: str) -> None:
        self._launch("--resume", str(self.folder), *overrides)

    def _launch(self, *arguments: str) -> None:
        with self.console.open("ab") as output:
            self.supervisor = subprocess.Popen(
                [*dart_gui("train"), *arguments],
                cwd=REPOSITORY,
                env=ENVIRONMENT,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def processes(self) -> dict[Process, str | None]:
        """All below the supervisor, with their roles."""
        assert self.supervisor is not None
        found = {pid: find(pid) for pid in descendants(self.supervisor.pid)}
        return {each: role_of(pid) for pid, each in found.items() if each is not None}

    def of_role(self, role: str) -> list[Process]:
        return [each for each, is_role in self.processes().items() if is_role == role]

    def wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        """Until ``condition`` holds; fails when the supervisor ends before that."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.supervisor is not None
            assert self.supervisor.poll() is None, f"waiting for {what}: {self.tails()}"
            assert time.monotonic() < deadline, f"no {what} in time: {self.tails()}"
            time.sleep(POLL_S)

    def wait_for_progress(self) -> None:
        """Episodes that are planned, stored and trained from here on."""
        planned = self.value("SELECT count(*) FROM task_group")
        self.wait_for(
            "a train step with groups that were planned after this moment",
            lambda: (
                self.value(
                    "SELECT count(*) FROM task_group"
                    f" WHERE number >= {planned} AND state IN ('claimed', 'trained')"
                )
                > 0
            ),
        )

    def value(self, sql: str) -> int:
        """0 while there is no ledger yet."""
        path = self.folder / "ledger.sqlite"
        if not path.exists():
            return 0
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            try:
                return connection.execute(sql).fetchone()[0] or 0
            except sqlite3.OperationalError:  # the tables are about to be made
                return 0

    def events(self, name: str) -> list[dict]:
        return [e for e in metrics.read(self.folder / "metrics.jsonl") if e["event"] == name]

    def end(self, signal_number: int = signal.SIGINT) -> int:
        """Ask the supervisor to stop; its exit code."""
        assert self.supervisor is not None
        self.supervisor.send_signal(signal_number)
        return self.supervisor.wait(DEADLINE_S)

    def check(self, *arguments: str) -> str:
        """``dart-gui db check``, which must be clean."""
        done = subprocess.run(
            [*dart_gui("db"), "check", str(self.folder), *arguments],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            env=ENVIRONMENT,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def tails(self) -> str:
        paths = [self.console, *sorted((self.folder / "logs").glob("*.log"))]
        return "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in paths)


ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(REPOSITORY / "src"),
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "160",
}


def dart_gui(command: str) -> list[str]:
    return [sys.executable, "-m", "dart_gui", command]


def wait_gone(processes: list[Process], *, within_s: float) -> float:
    """Until all have ended; the seconds that it took."""
    started = time.monotonic()
    while left := [each for each in processes if each.is_alive]:
        roles = [f"{each.pid} ({role_of(each.pid)})" for each in left]
        assert time.monotonic() < started + within_s, f"after {within_s} s there are still {roles}"
        time.sleep(POLL_S)
    return time.monotonic() - started


@pytest.fixture(scope="module")
def training_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainingRun]:
    """A run that is not started; whatever is left of it at the end is killed."""
    run = TrainingRun(tmp_path_factory.mktemp("runs"), "faults")
    yield run
    if run.supervisor is not None:
        left = list(run.processes())
        run.supervisor.kill()
        run.supervisor.wait()
        for process in left:
            process.kill()


@pytest.fixture(scope="session")
def wait_until_gone() -> Callable[..., float]:
    return wait_gone
