"""What a tree of processes uses, from Linux' /proc."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    parent: int
    started: int  # clock ticks since boot: with the pid, it names a process for good
    cpu_s: float  # user and system time of its own
    command: str


def all_processes() -> dict[int, Process]:
    """Every process of this machine that can be read, by pid."""
    found = (_read(int(each.name)) for each in Path("/proc").iterdir() if each.name.isdigit())
    return {process.pid: process for process in found if process is not None}


def tree(root: int, processes: dict[int, Process] | None = None) -> list[Process]:
    """``root`` and all that descends from it, parents first."""
    processes = all_processes() if processes is None else processes
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    return [processes[pid] for pid in _walk(root, children) if pid in processes]


def pss_bytes(processes: Iterable[Process]) -> int:
    """Proportional set size: memory that is shared counts once, divided among its users."""
    return sum(_pss(process.pid) for process in processes)


def cpu_s(processes: Iterable[Process]) -> float:
    return sum(process.cpu_s for process in processes)


def freeze(root: int) -> None:
    """Stop the tree as it is, so that it takes no time from what is measured."""
    _signal(root, signal.SIGSTOP)


def thaw(root: int) -> None:
    _signal(root, signal.SIGCONT)


def exit_on_sigterm() -> None:
    """Have SIGTERM unwind the stack as Ctrl-C does, so that no child process is left behind."""

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the tidying up
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def _signal(root: int, number: signal.Signals) -> None:
    for process in tree(root):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _walk(pid: int, children: dict[int, list[int]]) -> Iterator[int]:
    yield pid
    for child in children.get(pid, []):
        yield from _walk(child, children)


def _read(pid: int) -> Process | None:
    """None where it has ended meanwhile."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return None
    # The name, in brackets, may hold blanks and brackets of its own.
    fields = stat.rpartition(")")[2].split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        started=int(fields[19]),
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
        command=command.decode("utf-8", "replace"),
    )


def _pss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return 0
    kib = next((line.split()[1] for line in text.splitlines() if line.startswith("Pss:")), "0")
    return int(kib) * 1024
