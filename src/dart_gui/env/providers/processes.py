"""The processes of desktops, found by what the kernel says of them and not by what we noted."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dart_gui.env.providers.protocol import Usage
from dart_gui.env.providers.sandbox import MARK

PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Marked:
    """A process of bubblewrap that holds a desktop."""

    pid: int
    mark: str


def marked(mark: str | None = None) -> list[Marked]:
    """Those of the desktop with ``mark``, or of all desktops."""
    found = []
    for pid in _pids():
        seen = _mark_of(pid)
        if seen is not None and mark in (None, seen):
            found.append(Marked(pid, seen))
    return found


def kill(mark: str) -> bool:
    """Kill a desktop; False where nothing of it is left to kill.

    A process id may pass to another process at any time: a handle is taken first, then the process
    is looked at again, then the handle is signalled.
    """
    killed = False
    for process in marked(mark):
        try:
            handle = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        try:
            if _mark_of(process.pid) == mark:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                killed = True
        except ProcessLookupError:
            pass  # it ended meanwhile
        finally:
            os.close(handle)
    return killed


def usage(mark: str) -> Usage | None:
    """What the processes in the desktop's process namespace take; None where there are none."""
    own = os.readlink(PROC / "self" / "ns" / "pid")
    spaces = {_namespace(process.pid) for process in marked(mark)} - {own, None}
    pids = [pid for pid in _pids() if _namespace(pid) in spaces] if spaces else []
    if not pids:
        return None
    return Usage(
        memory_bytes=sum(map(_memory, pids)), cpu_s=sum(map(_cpu_s, pids)), num_processes=len(pids)
    )


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def _mark_of(pid: int) -> str | None:
    """A zombie has no command line, and so no mark."""
    try:
        words = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
        at = words.index(MARK.encode())
    except (OSError, ValueError):
        return None
    if os.path.basename(words[0]) != b"bwrap" or at + 1 >= len(words):
        return None
    return words[at + 1].decode("utf-8", "replace")


def _namespace(pid: int) -> str | None:
    try:
        return os.readlink(PROC / str(pid) / "ns" / "pid")
    except OSError:
        return None  # it ended, or is another user's


def _memory(pid: int) -> int:
    try:
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass  # it ended
    return 0


def _cpu_s(pid: int) -> float:
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    # utime, stime, and those of children that were waited for: fields 14 to 17 of proc(5).
    return sum(map(int, fields[11:15])) / _TICKS
