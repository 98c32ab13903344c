"""What a run holds at a moment, and what is left of it afterwards."""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.processes import Process

CGROUPS = Path("/sys/fs/cgroup")
SOCKETS = Path("/tmp/.X11-unix")
PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Of a whole tree of processes, the desktops in it included."""

    at_s: float  # since the start
    num_processes: int
    num_displays: int  # X servers
    num_fds: int  # open file descriptors
    num_files: int  # files and folders in the run's own TMPDIR, sockets of desktops included
    num_leased: int  # desktops that an episode holds, as the runner says
    memory_mib: float  # proportional set size
    memory_by: dict[str, float]  # the same by module


class Observer:
    """Samples the trees below ``roots`` and remembers every process that it saw."""

    def __init__(
        self,
        roots: Sequence[int],
        tmp: Path,
        leased: Callable[[], int],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roots, self._tmp, self._leased = roots, tmp, leased
        self._clock = clock
        self._began = clock()
        self.seen: dict[tuple[int, int], Process] = {}  # by pid and start
        self.groups: set[str] = set()  # control groups of desktops

    def look(self) -> Sample:
        now = processes.all_processes()
        tree = [each for root in self._roots for each in processes.tree(root, now)]
        self.seen.update({(each.pid, each.started): each for each in tree})
        self.groups.update(*(groups_of(_membership(each.pid)) for each in tree))
        memory: defaultdict[str, float] = defaultdict(float)
        for each in tree:
            memory[module_of(each.command)] += processes.pss_bytes([each]) / 2**20
        return Sample(
            at_s=self._clock() - self._began,
            num_processes=len(tree),
            num_displays=sum(_is_display(each) for each in tree),
            num_fds=sum(_num_fds(each.pid) for each in tree),
            num_files=len(files_in(self._tmp)),
            num_leased=self._leased(),
            memory_mib=sum(memory.values()),
            memory_by=dict(memory),
        )


def module_of(command: str) -> str:
    """The command of ours that a process runs, or ``worker`` of the service; desktops have none."""
    found = re.search(r"-m dart_gui(?: |\.rollout\.)([a-z-]+)", command)
    return found[1] if found else "desktops"


def still_running(seen: Sequence[Process]) -> list[Process]:
    """Those of ``seen`` that run now; a process id that passed to another one is not meant."""
    now = processes.all_processes()
    return [each for each in seen if each.pid in now and now[each.pid].started == each.started]


def marked_with(text: str) -> list[Process]:
    """Processes that name ``text`` on their command line, whoever their parent is now."""
    own = os.getpid()
    found = processes.all_processes().values()
    return [each for each in found if text in each.command and each.pid != own]


def files_in(folder: Path) -> list[str]:
    """Paths of all that is below ``folder``, where files come and go meanwhile."""
    walk = os.walk(folder, onerror=None)
    return [os.path.join(at, name) for at, folders, files in walk for name in (*folders, *files)]


def groups_of(membership: str) -> set[str]:
    """The control groups of desktops in the text of ``/proc/PID/cgroup``, below ``/sys/fs/cgroup``."""
    found = set()
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if path.rpartition("/")[2].startswith("dart-"):
            found.add(f"{controllers}{path}".lstrip("/"))
    return found


def left_groups(seen: Iterable[str]) -> list[str]:
    """Those of ``seen`` that are still there."""
    return sorted(name for name in seen if (CGROUPS / name).is_dir())


def sockets(folder: Path = SOCKETS, proc: Path = PROC) -> set[str]:
    """X sockets of this machine behind which there is no X server: one that runs is another program's, as
    the run's own are counted as processes. A desktop has its own ``/tmp`` and leaves none here."""
    if not folder.is_dir():
        return set()
    rows = (line.split() for line in (proc / "net" / "unix").read_text().splitlines()[1:])
    alive = {Path(row[7]).name for row in rows if len(row) > 7 and Path(row[7]).parent == folder}
    return {path.name for path in folder.iterdir()} - alive


def _is_display(process: Process) -> bool:
    return process.command.split(" ", 1)[0].rpartition("/")[2] == "Xvfb"


def _membership(pid: int) -> str:
    try:
        return (PROC / str(pid) / "cgroup").read_text()
    except OSError:
        return ""  # it ended meanwhile


def _num_fds(pid: int) -> int:
    try:
        return len(os.listdir(PROC / str(pid) / "fd"))
    except OSError:
        return 0  # it ended meanwhile
