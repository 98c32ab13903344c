"""What a server remembers on disk: its leases and the limits that were set."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter, ValidationError

from dart_gui.env.server.leases import Lease
from dart_gui.errors import DataError, SetupError
from dart_gui.files import write_whole

_LEASES = TypeAdapter(list[Lease])


@dataclass(frozen=True, slots=True)
class Remembered:
    leases: Sequence[Lease] = ()
    limits: Mapping[str, int] = field(default_factory=dict)


class Registry:
    """``registry.json`` in the server's folder, whole or not at all; one server per folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "registry.json"
        self._lock_path = folder / "lock"
        self._lock: IO[str] | None = None

    def open(self) -> Remembered:
        """Lock the folder and read what is there.

        Raises:
            SetupError: another server has this folder.
            DataError: the file is not what a server wrote.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = self._lock_path.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise SetupError(
                f"another env server runs in {self._path.parent}: end it, or choose another folder"
            ) from None
        self._lock = lock
        return self._read()

    def save(self, leases: Sequence[Lease], limits: Mapping[str, int]) -> None:
        """Raises ``DataError`` where it cannot be written."""
        tree = {"leases": _LEASES.dump_python(list(leases), mode="json"), "limits": dict(limits)}
        write_whole(self._path, json.dumps(tree), what="the registry of leases", sync=True)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _read(self) -> Remembered:
        if not self._path.exists():
            return Remembered()
        try:
            tree = json.loads(self._path.read_text(encoding="utf-8"))
            limits = {str(name): int(limit) for name, limit in tree["limits"].items()}
            return Remembered(_LEASES.validate_python(tree["leases"]), limits)
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise DataError(
                f"{self._path} is not a registry of leases: {error!r}. Delete it to start without "
                "the leases of before; their desktops are ended then."
            ) from None
