"""Routes of the guest API about windows."""

from __future__ import annotations

from dataclasses import asdict

from aiohttp import web

from dart_gui.env.desktop.guest import GUEST, Guest, GuestError, read_object, window_query
from dart_gui.env.desktop.screen import Window, WindowQuery
from dart_gui.env.desktop.watch import Condition

REACT_S = 10.0
"""For a window to become the active one, or to close, once it was asked to."""


def add_routes(app: web.Application) -> None:
    app.router.add_get("/windows", _windows)
    app.router.add_post("/window_size", _window_size)
    app.router.add_post("/setup/activate_window", _activate)
    app.router.add_post("/setup/close_window", _close)


async def _windows(request: web.Request) -> web.Response:
    return web.json_response([asdict(window) for window in await request.app[GUEST].windows()])


async def _window_size(request: web.Request) -> web.Response:
    name = str((await request.post()).get("app_class_name", ""))
    if not name:
        raise GuestError(400, "app_class_name is required")
    window = await request.app[GUEST].find_window(WindowQuery(name=name, by_class=True))
    if window is None:
        raise GuestError(404, f"there is no window of class {name!r}")
    return web.json_response({"width": window.width, "height": window.height})


async def _activate(request: web.Request) -> web.Response:
    guest = request.app[GUEST]
    query = window_query(await read_object(request))
    window = await _find(guest, query)
    await guest.on_screen(lambda: guest.screen.activate(window.window_id))
    condition = Condition(stable_s=0, window=query, timeout_s=REACT_S)
    outcome = await guest.watcher.wait(condition)
    if not outcome.met:
        raise GuestError(500, outcome.missing)
    return web.Response(text="Window activated successfully")


async def _close(request: web.Request) -> web.Response:
    """Asks the window to close. It may have a question first: then it is still there, and that is
    an answer of 200 all the same, as OSWorld has it."""
    guest = request.app[GUEST]
    window = await _find(guest, window_query(await read_object(request)))
    await guest.on_screen(lambda: guest.screen.close_window(window.window_id))
    return web.Response(text="Window closed successfully.")


async def _find(guest: Guest, query: WindowQuery) -> Window:
    window = await guest.find_window(query)
    if window is None:
        raise GuestError(404, f"there is no window {query.name!r}")
    return window
