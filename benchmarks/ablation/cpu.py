"""CPU seconds of a process tree by module, from /proc."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import defaultdict
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SAMPLE_S = 1.0
SUPERVISOR = "supervisor"
_MODULES = ("rollout", "runner", "trainer", "evaluator")


class CpuMeter:
    """Samples the descendants of ``root`` until it is stopped. What a process used after its last
    sample is lost: at most a second of each."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._seconds: dict[int, tuple[str, float]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        """CPU seconds per module."""
        self._stopped.set()
        self._thread.join()
        totals: dict[str, float] = defaultdict(float)
        for module, seconds in self._seconds.values():
            totals[module] += seconds
        return {module: round(seconds, 1) for module, seconds in sorted(totals.items())}

    def _loop(self) -> None:
        while not self._stopped.wait(SAMPLE_S):
            for pid, module in _tree(self._root, SUPERVISOR).items():
                with contextlib.suppress(OSError, IndexError):
                    self._count(pid, module, _seconds(pid))

    def _count(self, pid: int, module: str, seconds: float) -> None:
        # A process has its parent's command line until it runs its own program, and none once it has
        # ended: what it was found to be by its own is what it is.
        known, _ = self._seconds.get(pid, (SUPERVISOR, 0.0))
        self._seconds[pid] = (known if module == SUPERVISOR else module, seconds)


def _tree(root: int, module: str) -> dict[int, str]:
    """The module of ``root`` and of each of its descendants; a child is of its parent's module
    unless its command line names another."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                children[int(_fields(int(entry.name))[1])].append(int(entry.name))
    found: dict[int, str] = {}
    stack = [(root, module)]
    while stack:
        pid, inherited = stack.pop()
        found[pid] = _module_of(pid, inherited)
        stack += [(child, found[pid]) for child in children[pid]]
    return found


def _module_of(pid: int, inherited: str) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return inherited
    if "chrom" in Path(words[0]).name or "headless_shell" in words[0]:
        return "browser"
    if "dart_gui" in words:
        command = words[words.index("dart_gui") + 1 :][:1]
        return command[0] if command and command[0] in _MODULES else inherited
    return inherited


def _fields(pid: int) -> list[str]:
    """/proc/PID/stat behind the name, which may hold spaces: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _seconds(pid: int) -> float:
    fields = _fields(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S
