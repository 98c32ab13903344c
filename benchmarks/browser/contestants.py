"""The parent's end of the two sides: child processes that run, are frozen, and are measured."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks import processes
from benchmarks.browser.workload import Order, Tally, task_of
from benchmarks.results import ROOT

END_S = 60.0  # for a side to close its browsers


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Of one round. CPU is that of all processes of the side, its Python included."""

    num_envs: int
    steps_per_s: float
    cpu_ms_per_step: float
    pss_mib_per_env: float
    browser_pss_mib_per_env: float  # without the Python processes
    steps_per_episode: float


class Child:
    def __init__(self, module: str, arguments: Sequence[str], environ: dict[str, str]) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the child)
        self._popen = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.browser.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environ},
        )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def ask(self, order: Order) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(order.line() + "\n")
        self._popen.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Raises ``RuntimeError`` where the child has ended."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if line:
            return dict(json.loads(line))
        self._log.seek(0)
        raise RuntimeError(f"the child process ended; it wrote:\n{self._log.read()[-4000:]}")

    def ask_to_end(self) -> None:
        processes.thaw(self.pid)
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.close()

    def wait(self) -> None:
        try:
            self._popen.wait(timeout=END_S)
        except subprocess.TimeoutExpired:
            for process in processes.tree(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            self._popen.wait()
        assert self._popen.stdout is not None
        self._popen.stdout.close()
        self._log.close()


class Contestant(Protocol):
    def run(self, order: Order) -> Measured: ...

    def close(self) -> None: ...


class Ours:
    """One process with ``max_envs`` pages."""

    def __init__(self, tasks: list[str], max_envs: int) -> None:
        self._child = Child("ours", [str(max_envs), *tasks], {})
        try:
            self._child.answer()
        except BaseException:
            self.close()
            raise
        processes.freeze(self._child.pid)

    def run(self, order: Order) -> Measured:
        return _measure([self._child], order)

    def close(self) -> None:
        _end([self._child])


class Official:
    """``max_envs`` processes with one environment each, as the package is used in parallel."""

    def __init__(
        self, tasks: list[str], max_envs: int, *, browser: str = "", driver: str = ""
    ) -> None:
        environ = {"MINIWOB_CHROME_BINARY": browser, "MINIWOB_CHROMEDRIVER": driver}
        self._children: list[Child] = []
        try:
            for index in range(max_envs):
                arguments = [str(index), task_of(index, tasks)]
                self._children.append(Child("official", arguments, environ))
            for child in self._children:
                child.answer()
        except BaseException:
            self.close()
            raise
        for child in self._children:
            processes.freeze(child.pid)

    def run(self, order: Order) -> Measured:
        return _measure(self._children[: order.num_envs], order)

    def close(self) -> None:
        _end(self._children)


@contextlib.contextmanager
def closing(contestant: Contestant) -> Iterator[Contestant]:
    try:
        yield contestant
    finally:
        contestant.close()


def _end(children: Sequence[Child]) -> None:
    """All at once: each browser takes seconds to end."""
    for child in children:
        child.ask_to_end()
    for child in children:
        child.wait()


def _measure(children: Sequence[Child], order: Order) -> Measured:
    for child in children:
        processes.thaw(child.pid)
    before = _cpu_s(children)
    for child in children:
        child.ask(order)
    tallies = [Tally(**child.answer()) for child in children]
    cpu_s = _cpu_s(children) - before
    trees = [processes.tree(child.pid) for child in children]
    pss = sum(processes.pss_bytes(tree) for tree in trees)
    own = sum(processes.pss_bytes(tree[:1]) for tree in trees)  # the first is our Python
    for child in children:
        processes.freeze(child.pid)
    num_steps = sum(tally.num_steps for tally in tallies)
    return Measured(
        num_envs=order.num_envs,
        steps_per_s=sum(tally.num_steps / tally.wall_s for tally in tallies),
        cpu_ms_per_step=1000 * cpu_s / max(1, num_steps),
        pss_mib_per_env=pss / order.num_envs / 2**20,
        browser_pss_mib_per_env=(pss - own) / order.num_envs / 2**20,
        steps_per_episode=num_steps / max(1, sum(tally.num_episodes for tally in tallies)),
    )


def _cpu_s(children: Sequence[Child]) -> float:
    seen = processes.all_processes()
    return sum(processes.cpu_s(processes.tree(child.pid, seen)) for child in children)
