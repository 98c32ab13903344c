"""Memory and process limits of a desktop by control groups, where this machine lets us make some."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_FILES = {  # controller -> (version 1, version 2)
    "memory": ("memory.limit_in_bytes", "memory.max"),
    "pids": ("pids.max", "pids.max"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    memory_mb: int = 2048
    max_processes: int = 512


class ControlGroups:
    """Groups below our own, one per desktop and controller: our own limits hold for them too."""

    def __init__(self, parents: dict[str, Path], *, version: int) -> None:
        self._parents = parents
        self._version = version

    @classmethod
    def find(cls, *, root: Path = ROOT, membership: str | None = None) -> ControlGroups:
        """The controllers in whose group of this process a group can be made."""
        text = membership if membership is not None else Path("/proc/self/cgroup").read_text()
        unified = (root / "cgroup.controllers").exists()
        parents: dict[str, Path] = {}
        for line in text.splitlines():
            _, names, path = line.split(":", 2)
            for controller in _FILES:
                if unified and not names:
                    parent = root / path.lstrip("/")
                    enabled = parent / "cgroup.subtree_control"
                    if enabled.exists() and controller in enabled.read_text().split():
                        parents[controller] = parent
                elif not unified and controller in names.split(","):
                    parents[controller] = root / controller / path.lstrip("/")
        usable = {name: path for name, path in parents.items() if os.access(path, os.W_OK)}
        return cls(usable, version=2 if unified else 1)

    @property
    def missing(self) -> list[str]:
        return sorted(set(_FILES) - set(self._parents))

    def create(self, name: str, limits: Limits) -> list[Path]:
        """Make the groups of a desktop; the files to which a process writes its id to enter them.

        Raises:
            OSError: the kernel refuses.
        """
        values = {"memory": limits.memory_mb << 20, "pids": limits.max_processes}
        entrances = []
        for controller, parent in self._parents.items():
            group = parent / name
            group.mkdir(exist_ok=True)
            (group / _FILES[controller][self._version - 1]).write_text(str(values[controller]))
            entrances.append(group / "cgroup.procs")
        return sorted(set(entrances))

    def remove(self, name: str) -> bool:
        """Remove the groups of a desktop that has ended; False while a process is still in one."""
        for parent in self._parents.values():
            try:
                (parent / name).rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                return False
        return True
