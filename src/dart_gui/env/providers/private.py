"""Desktops of one process on this machine: a folder for them, and the end of what others left."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from dart_gui.env.providers.limits import Limits
from dart_gui.env.providers.protocol import Desktop, Provider, Usage
from dart_gui.env.providers.xvfb import XvfbProvider
from dart_gui.errors import SetupError

_LOCK = "lock"
_UNLOCKED = "new-"


class PrivateProvider:
    """A provider in a folder of its own, made at the start and gone at the end.

    Its folder would stay after a kill: the next start removes the folders, and with ``make`` the
    desktops, of processes that are gone.
    """

    def __init__(self, name: str, make: Callable[[Path], Provider], *, base: Path) -> None:
        self.name = name
        self._base = base
        self._make = make
        self._root: Path | None = None
        self._lock: IO[bytes] | None = None
        self._inner: Provider | None = None

    async def start(self) -> None:
        self._base.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._base.stat().st_uid != os.getuid():
            raise SetupError(f"{self._base} belongs to somebody else: set TMPDIR to another folder")
        root = self._claim()
        for folder in self._base.iterdir():
            if not folder.name.startswith(_UNLOCKED):
                await self._remove_if_left(folder)
        self._inner = self._make(root / "d")
        await self._inner.start()

    def warnings(self) -> list[str]:
        return self._running.warnings()

    async def create(self, desktop_id: str) -> Desktop:
        return await self._running.create(desktop_id)

    async def destroy(self, desktop_id: str) -> None:
        await self._running.destroy(desktop_id)

    async def find(self) -> list[Desktop]:
        return await self._running.find()

    async def usage(self, desktop_id: str) -> Usage | None:
        return await self._running.usage(desktop_id)

    async def close(self) -> None:
        if self._lock is None or self._root is None:
            return
        if self._inner is not None:
            await self._inner.close()
        _remove(self._root)
        self._lock.close()
        self._lock = self._root = None

    @property
    def _running(self) -> Provider:
        if self._inner is None:
            raise RuntimeError("the provider was not started")
        return self._inner

    def _claim(self) -> Path:
        """A folder, locked before others look at it."""
        made = Path(tempfile.mkdtemp(prefix=_UNLOCKED, dir=self._base))
        self._lock = _locked(made)
        self._root = made.rename(made.with_name(made.name.removeprefix(_UNLOCKED)))
        return self._root

    async def _remove_if_left(self, folder: Path) -> None:
        lock = _locked(folder)
        if lock is None:
            return  # its process runs, and may be us
        with lock:
            left = self._make(folder / "d")
            await left.start()
            for desktop in await left.find():  # what has ended too: its control groups are left
                await left.destroy(desktop.desktop_id)
            await left.close()
            _remove(folder)


class PrivateXvfbProvider(PrivateProvider):
    """:class:`XvfbProvider` so: its desktops end with this process, however that ends, and a killed one
    leaves the folder and the control groups."""

    def __init__(
        self, *, width: int, height: int, limits: Limits, base: Path | None = None
    ) -> None:
        super().__init__(
            XvfbProvider.name,
            lambda root: XvfbProvider(root, width=width, height=height, limits=limits),
            base=base or Path(tempfile.gettempdir()) / f"dart-desktops-{os.getuid()}",
        )


def _locked(folder: Path) -> IO[bytes] | None:
    """The lock of a folder, held; None where somebody holds it."""
    file = (folder / _LOCK).open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _remove(root: Path) -> None:
    """A folder whose desktops are gone."""
    if (root / "d").is_dir():
        (root / "d").rmdir()
    (root / _LOCK).unlink()
    root.rmdir()
