"""Desktops without a display: the real guest server over a fake screen, in this process.

``/execute`` runs commands on this machine, in a folder of the desktop: for tests only.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Middleware

from dart_gui.env.desktop.address import Address
from dart_gui.env.desktop.fakes import FakeScreen
from dart_gui.env.desktop.guest import Guest, new_app
from dart_gui.env.providers.protocol import Desktop, Usage
from dart_gui.errors import EnvError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Fault(StrEnum):
    """What is wrong with a desktop."""

    NONE = "none"
    NO_BOOT = "no_boot"  # never gets ready
    HANGS = "hangs"  # answers nothing any more, from the first action on
    GARBAGE = "garbage"  # its screenshots are no images, from the first action on


@dataclass
class _Running:
    desktop: Desktop
    screen: FakeScreen
    guest: Guest
    runner: web.AppRunner
    released: asyncio.Event  # requests that hang end with an error
    stopping: asyncio.Lock  # it may die while it is ended


class FakeProvider:
    """The n-th desktop has the n-th fault, the last one from then on."""

    name = "fake"

    def __init__(
        self,
        root: Path,
        *,
        width: int = 320,
        height: int = 200,
        faults: Sequence[Fault] = (Fault.NONE,),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._size = (width, height)
        self._faults = faults
        self._clock = clock
        self._running: dict[str, _Running] = {}
        self.num_created = 0
        self.hold_boot = asyncio.Event()
        """Clear it, and desktops boot only once it is set."""
        self.hold_boot.set()
        self.num_failing_ends = 0
        """So many of the next ends fail."""
        self.hold_end = asyncio.Event()
        """Clear it, and desktops end only once it is set."""
        self.hold_end.set()

    async def start(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)

    def warnings(self) -> list[str]:
        return ["fake desktops isolate nothing"]

    def screen(self, desktop_id: str) -> FakeScreen:
        return self._running[desktop_id].screen

    async def create(self, desktop_id: str) -> Desktop:
        began = self._clock()
        fault = self._faults[min(self.num_created, len(self._faults) - 1)]
        self.num_created += 1
        await self.hold_boot.wait()
        if fault is Fault.NO_BOOT:
            raise EnvError(f"the desktop {desktop_id} did not boot: the script says so")
        folder = self._root / desktop_id
        folder.mkdir()
        address = Address(socket=folder / "guest.sock")
        desktop = Desktop(
            desktop_id=desktop_id,
            address=address,
            created_at=began,
            boot_s=self._clock() - began,
        )
        # Not to be cut in the middle: asyncio would lose a server that listens already.
        serving = asyncio.ensure_future(self._serve(desktop, folder, fault))
        try:
            self._running[desktop_id] = await asyncio.shield(serving)
        except asyncio.CancelledError:
            await _stop(await serving)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return desktop

    async def die(self, desktop_id: str) -> None:
        """End the guest server, as a crash of the desktop does."""
        running = self._running[desktop_id]
        running.desktop = replace(running.desktop, is_running=False)
        await _stop(running)

    async def destroy(self, desktop_id: str) -> None:
        running = self._running.get(desktop_id)
        if running is None:
            return
        if self.num_failing_ends:
            self.num_failing_ends -= 1
            raise EnvError(f"the desktop {desktop_id} did not end: the script says so")
        await self.hold_end.wait()
        await _stop(running)
        running.guest.close()
        shutil.rmtree(self._root / desktop_id, ignore_errors=True)
        self._running.pop(desktop_id, None)

    async def find(self) -> list[Desktop]:
        return [running.desktop for running in self._running.values()]

    async def usage(self, desktop_id: str) -> Usage | None:
        if desktop_id not in self._running:
            return None
        return Usage(memory_bytes=1 << 20, cpu_s=0.5, num_processes=1)

    async def close(self) -> None:
        pass

    async def _serve(self, desktop: Desktop, folder: Path, fault: Fault) -> _Running:
        home = folder / "home"
        (home / "Desktop").mkdir(parents=True)
        screen = FakeScreen(width=self._size[0], height=self._size[1])
        guest = Guest(screen, home=home, at_work=lambda: False)
        released = asyncio.Event()
        app = new_app(guest)
        app.middlewares.append(_faulty(fault, screen, released))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        await web.UnixSite(runner, str(desktop.address.socket)).start()
        return _Running(desktop, screen, guest, runner, released, asyncio.Lock())


async def _stop(running: _Running) -> None:
    running.released.set()
    async with running.stopping:
        await running.runner.cleanup()


def _faulty(fault: Fault, screen: FakeScreen, released: asyncio.Event) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if fault is Fault.HANGS and screen.actions:
            await released.wait()
        if fault is Fault.GARBAGE and screen.actions and request.path == "/screenshot":
            return web.Response(body=b"this is no picture", content_type="image/png")
        return await handler(request)

    return middleware
