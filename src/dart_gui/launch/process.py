"""One child process that is kept alive: a state machine over a handle, advanced by ``tick``.

        start            exits by itself, finished
  IDLE ------> RUNNING ---------------------------> FINISHED
                ^   |  exits otherwise, restarts left
        backoff |   +-----------> BACKOFF
        is over +--------------------'  |  stop
                    |  stop             v
                    +----> STOPPING --> STOPPED
                    |  exits otherwise, no restarts left, or a permanent error
                    +----> FAILED

Each child leads a process group of its own, so that Ctrl-C in the terminal reaches the supervisor
alone, and so that whatever a dead child left behind can be swept away before it is started again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from dart_gui.files import writing

PERMANENT_EXIT_CODE = 78
"""A child that exits so found an error that no restart can mend (``EX_CONFIG`` of sysexits.h)."""

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0


class ProcessState(StrEnum):
    IDLE = "idle"
    RUNNING = "running"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"


TRANSITIONS: Mapping[ProcessState, frozenset[ProcessState]] = {
    ProcessState.IDLE: frozenset({ProcessState.RUNNING, ProcessState.STOPPED}),
    ProcessState.RUNNING: frozenset(
        {
            ProcessState.BACKOFF,
            ProcessState.STOPPING,
            ProcessState.FINISHED,
            ProcessState.FAILED,
        }
    ),
    ProcessState.BACKOFF: frozenset({ProcessState.RUNNING, ProcessState.STOPPED}),
    ProcessState.STOPPING: frozenset({ProcessState.STOPPED, ProcessState.FINISHED}),
    ProcessState.STOPPED: frozenset(),
    ProcessState.FINISHED: frozenset(),
    ProcessState.FAILED: frozenset(),
}


class Handle(Protocol):
    """A started process: the seam that tests replace."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""

    def terminate(self) -> None:
        """Ask it to end (SIGTERM), the leader alone: it ends its own children in order."""

    def kill(self) -> None:
        """End its whole group at once (SIGKILL); harmless when nothing is left."""


class GroupHandle:
    """A real process that leads its own group. Raises ``DataError`` where ``log`` cannot be opened."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        with writing(f"the log {log}"):
            log.parent.mkdir(parents=True, exist_ok=True)
            file = log.open("ab")
        with file as output:
            self._popen = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def poll(self) -> int | None:
        return self._popen.poll()

    def terminate(self) -> None:
        if self._popen.poll() is None:
            self._popen.terminate()

    def kill(self) -> None:
        # The group outlives its leader while any grandchild is left in it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    name: str
    spawn: Callable[[], Handle]
    log: Path
    max_restarts: int
    stop_timeout_s: float
    finished: Callable[[], bool] = field(default=lambda: True)
    """Asked when it exits with code 0: did it do all of its work? Else it is started again."""
    vital: bool = True
    """The run cannot go on without it: its failure for good ends the run."""


class ManagedProcess:
    """See the module's diagram. Times are of the injected clock, in seconds."""

    def __init__(self, spec: ProcessSpec, *, now: Callable[[], float]) -> None:
        self.spec = spec
        self.restarts = 0
        self.exit_code: int | None = None
        self._now = now
        self._state = ProcessState.IDLE
        self._handle: Handle | None = None
        self._due_at = 0.0  # end of the backoff, or of the patience with a process that stops

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def state(self) -> ProcessState:
        return self._state

    @property
    def pid(self) -> int | None:
        return self._handle.pid if self._handle and not self.has_ended else None

    @property
    def has_ended(self) -> bool:
        """In a state that it does not leave."""
        return not TRANSITIONS[self._state]

    def start(self) -> None:
        self._enter(ProcessState.RUNNING)
        self._handle = self.spec.spawn()

    def stop(self, *, timeout_s: float | None = None) -> None:
        """Ask it to end; ``tick`` sees to it that it does, within ``timeout_s`` (``stop_timeout_s``
        by default; asked again, the shorter holds). Does nothing to one that has ended."""
        due_at = self._now() + (self.spec.stop_timeout_s if timeout_s is None else timeout_s)
        if self._state is ProcessState.RUNNING and self._handle is not None:
            self._enter(ProcessState.STOPPING)
            self._due_at = due_at
            self._handle.terminate()
        elif self._state is ProcessState.STOPPING:
            self._due_at = min(self._due_at, due_at)
        elif self._state in (ProcessState.IDLE, ProcessState.BACKOFF):
            self._enter(ProcessState.STOPPED)

    def kill(self) -> None:
        """End it and its group now; ``tick`` records it."""
        self.stop()
        if self._handle is not None:
            self._handle.kill()

    def tick(self) -> None:
        """Read the truth and act on it."""
        if self._state is ProcessState.BACKOFF:
            if self._now() >= self._due_at:
                self.restarts += 1
                self.start()
        elif self._handle is not None and not self.has_ended:
            code = self._handle.poll()
            if code is not None:
                self._ended(code)
            elif self._state is ProcessState.STOPPING and self._now() >= self._due_at:
                self._handle.kill()

    def _ended(self, code: int) -> None:
        assert self._handle is not None
        self._handle.kill()
        self.exit_code = code
        if code == 0 and self.spec.finished():
            self._enter(ProcessState.FINISHED)
        elif self._state is ProcessState.STOPPING:
            self._enter(ProcessState.STOPPED)
        elif code == PERMANENT_EXIT_CODE or self.restarts >= self.spec.max_restarts:
            self._enter(ProcessState.FAILED)
        else:
            self._enter(ProcessState.BACKOFF)
            self._due_at = self._now() + backoff_s(self.restarts)

    def _enter(self, state: ProcessState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise RuntimeError(f"{self.name}: illegal transition {self._state} -> {state}")
        self._state = state


def backoff_s(restarts: int) -> float:
    """Doubles from half a second to half a minute.

    >>> [backoff_s(n) for n in (0, 1, 2, 10)]
    [0.5, 1.0, 2.0, 30.0]
    """
    return min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(restarts, 16))


def describe_exit(code: int | None) -> str:
    """``exit code 3``, or the name of the signal that ended it."""
    if code is None:
        return "no exit code"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def last_lines(log: Path, count: int = 12) -> str:
    """The end of a log, for an error message; empty where there is none."""
    if not log.exists():
        return ""
    size = log.stat().st_size
    with log.open("rb") as file:
        file.seek(max(0, size - 16_384))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return "\n".join(lines[-count:])
