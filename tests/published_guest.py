"""A guest with OSWorld's published routes and nothing else, over one of ours that has a real desktop."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from aiohttp import web

from dart_gui.env.desktop.address import Address
from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.pool import DesktopSource
from dart_gui.env.providers.protocol import Desktop

# Of OSWorld's desktop_env/server/main.py, those that are relayed.
ROUTES = {
    *("/execute", "/setup/execute", "/execute_with_verification", "/setup/launch"),
    *("/setup/execute_with_verification", "/screenshot", "/terminal", "/accessibility"),
    *("/screen_size", "/window_size", "/desktop_path", "/wallpaper", "/list_directory", "/file"),
    *("/setup/upload", "/platform", "/cursor_position", "/setup/change_wallpaper"),
    *("/setup/open_file", "/setup/activate_window", "/setup/close_window", "/run_python"),
    *("/run_bash_script", "/start_recording", "/end_recording"),
}


class PublishedDouble:
    """Listens on a Unix socket. Queries and limits that OSWorld's server does not know are dropped.

    ``python3`` and ``python`` are this Python, which has python-xlib, as that of OSWorld's image has.
    """

    def __init__(self, guest: Address, socket: Path) -> None:
        self._client = GuestClient(guest)
        self._runner: web.AppRunner | None = None
        self.address = Address(socket=socket)
        self.asked: list[str] = []
        self.pythons = {"python3": sys.executable, "python": sys.executable}

    async def __aenter__(self) -> PublishedDouble:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._relay)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self.address.socket)).start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        await self._client.close()

    async def _relay(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if request.path not in ROUTES:
            return web.Response(status=404, text="<!doctype html><title>404 Not Found</title>")
        body = await request.read()
        if request.path == "/execute":
            body = self._with_python(body)
        answer = await self._client.relay(
            request.method,
            request.path,
            body=body,
            content_type=request.headers.get("Content-Type"),
            timeout_s=120,
        )
        kind = {"Content-Type": answer.content_type} if answer.content_type else None
        return web.Response(status=answer.status, body=answer.body, headers=kind)

    def _with_python(self, body: bytes) -> bytes:
        given = json.loads(body)
        given.pop("timeout", None)
        command = given["command"]
        if isinstance(command, list) and command[0] in ("python3", "python"):
            given["command"] = [self.pythons.get(command[0], "/no/such/python"), *command[1:]]
        return json.dumps(given).encode()


class PublishedSource:
    """The desktops of another source, each behind a double."""

    def __init__(self, inner: DesktopSource, folder: Path) -> None:
        self._inner = inner
        self._folder = folder
        self._taken: dict[str, tuple[Desktop, PublishedDouble]] = {}
        self.asked: list[str] = []

    async def start(self) -> None:
        await self._inner.start()

    async def take(self) -> Desktop:
        desktop = await self._inner.take()
        double = PublishedDouble(desktop.address, self._folder / f"{desktop.desktop_id}.sock")
        double.asked = self.asked
        await double.__aenter__()
        self._taken[desktop.desktop_id] = desktop, double
        return replace(desktop, address=double.address)

    async def give_back(self, desktop: Desktop) -> None:
        inner, double = self._taken.pop(desktop.desktop_id)
        await double.__aexit__()
        with suppress(FileNotFoundError):
            (self._folder / f"{desktop.desktop_id}.sock").unlink()
        await self._inner.give_back(inner)

    async def close(self) -> None:
        await self._inner.close()
