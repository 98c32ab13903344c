"""What a server remembers on disk: its leases and the limits that were set while it ran."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter, ValidationError

from dart_gui.env.server.leases import Lease
from dart_gui.env.server.tokens import ChangedLimit
from dart_gui.errors import DataError, SetupError
from dart_gui.files import write_whole


@dataclass(frozen=True, slots=True)
class Remembered:
    leases: Sequence[Lease]
    changed_limits: Mapping[str, ChangedLimit] = field(default_factory=dict)


_REMEMBERED = TypeAdapter(Remembered)


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

    def save(self, remembered: Remembered) -> None:
        """Raises ``DataError`` where it cannot be written."""
        text = _REMEMBERED.dump_json(remembered)
        write_whole(self._path, text, what="the registry of leases", sync=True)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _read(self) -> Remembered:
        if not self._path.exists():
            return Remembered([])
        try:
            return _REMEMBERED.validate_json(self._path.read_bytes())
        except (OSError, ValidationError) as error:
            raise DataError(
                f"{self._path} is not a registry of leases: {error!r}. Delete it to start without "
                "the leases of before; their desktops are ended then."
            ) from None
