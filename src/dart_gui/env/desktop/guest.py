"""The guest API: OSWorld's HTTP routes inside a desktop, and our own for typed actions.

OSWorld's routes keep its names, parameters and JSON. Ours are ``POST /action`` (a typed action as
JSON), ``POST /wait`` (until the screen meets a condition), ``POST /rest`` (until the programs do
nothing), ``GET /health``, ``GET /windows`` and ``/port/PORT/PATH``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import platform
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from pydantic import ValidationError

from dart_gui.env.desktop import rest
from dart_gui.env.desktop.execute import CommandError
from dart_gui.env.desktop.screen import ACTION, Frame, Screen, Window, WindowQuery, check
from dart_gui.env.desktop.watch import Condition, Outcome, Watcher
from dart_gui.env.refusal import ActionRefused

log = logging.getLogger(__name__)

MAX_BODY = 512 << 20
MAX_WAIT_S = 1800.0
"""OSWorld's own limit on waiting for a window."""
T = TypeVar("T")


class GuestError(Exception):
    """An answer other than 200, in OSWorld's shape: ``{"status": "error", "message": ...}``."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Guest:
    """What the routes share: the screen, which one thread at a time may use, and the home."""

    def __init__(
        self,
        screen: Screen,
        *,
        home: Path,
        at_work: Callable[[], bool] = rest.at_work,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.home = home
        self.clock = clock
        self.screen = screen
        self.at_work = at_work
        self.before: Frame | None = None  # the screen before the newest action
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="screen")
        self.watcher = Watcher(self.grab, self.windows, clock=clock)

    async def on_screen(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def grab(self, *, cursor: bool = False) -> Frame:
        return await self.on_screen(lambda: self.screen.grab(cursor=cursor))

    async def windows(self) -> list[Window]:
        return await self.on_screen(self.screen.windows)

    async def find_window(self, query: WindowQuery) -> Window | None:
        """The topmost that matches."""
        found = [window for window in await self.windows() if query.matches(window)]
        return found[-1] if found else None

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self.screen.close()


GUEST = web.AppKey("guest", Guest)


def new_app(guest: Guest) -> web.Application:
    """All routes of the guest API."""
    from dart_gui.env.desktop import (
        guest_files,
        guest_ports,
        guest_programs,
        guest_recording,
        guest_scripts,
        guest_windows,
    )

    app = web.Application(client_max_size=MAX_BODY, middlewares=[_errors])
    app[GUEST] = guest
    app.router.add_get("/health", _health)
    app.router.add_get("/screenshot", _screenshot)
    app.router.add_post("/action", _action)
    app.router.add_post("/wait", _wait)
    app.router.add_post("/rest", _rest)
    app.router.add_get("/platform", _platform)
    app.router.add_get("/cursor_position", _cursor_position)
    app.router.add_route("*", "/screen_size", _screen_size)
    parts = (
        guest_files,
        guest_ports,
        guest_programs,
        guest_recording,
        guest_scripts,
        guest_windows,
    )
    for part in parts:
        part.add_routes(app)
    return app


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        return error_response(error.status, f"{request.method} {request.path}: {error.reason}")
    except GuestError as error:
        return error_response(error.status, str(error))
    except CommandError as error:
        return error_response(500, str(error))
    except Exception as error:  # the server outlives whatever one request runs into
        log.exception("%s %s", request.method, request.path)
        return error_response(500, f"{type(error).__name__}: {error}")


def error_response(status: int, message: str) -> web.Response:
    # "error" too: some of OSWorld's routes call it so.
    body = {"status": "error", "message": message, "error": message}
    return web.json_response(body, status=status)


async def read_object(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request; one that is empty for no body.

    Raises:
        GuestError: 400, it is something else.
    """
    text = await request.text()
    try:
        body = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise GuestError(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise GuestError(400, f"the body must be a JSON object, got {type(body).__name__}")
    return body


def seconds(body: dict[str, Any], key: str, default: float) -> float:
    """Raises ``GuestError`` (400) where it is no number."""
    try:
        return min(float(body.get(key, default)), MAX_WAIT_S)
    except (TypeError, ValueError):
        raise GuestError(400, f"{key} must be a number of seconds") from None


def window_query(body: dict[str, Any]) -> WindowQuery:
    """Raises ``GuestError`` (400) where no window is named."""
    name = body.get("window_name")
    if not isinstance(name, str) or not name:
        raise GuestError(400, "window_name is required")
    return WindowQuery(
        name=name, strict=bool(body.get("strict")), by_class=bool(body.get("by_class"))
    )


async def _health(request: web.Request) -> web.Response:
    """Answers once the desktop can be used: the server starts after the window manager."""
    screen = request.app[GUEST].screen
    return web.json_response({"status": "ready", "width": screen.width, "height": screen.height})


async def _screenshot(request: web.Request) -> web.Response:
    """PNG of the screen with the pointer; how long grab and encoding took stands in the header.

    ``stable_ms`` in the query waits for the screen to rest first, after ``react_ms`` for it to react
    to the newest action, ``timeout_ms`` at most.
    """
    guest = request.app[GUEST]
    settled: Outcome | None = None
    if "stable_ms" in request.query:
        settled = await guest.watcher.wait(_settle_condition(request), since=guest.before)
    began = guest.clock()
    frame = await guest.grab(cursor=request.query.get("cursor", "1") != "0")
    grabbed = guest.clock()
    png = await asyncio.to_thread(frame.png)
    encoded = guest.clock()
    headers = {
        "X-Grab-Ms": f"{1e3 * (grabbed - began):.2f}",
        "X-Encode-Ms": f"{1e3 * (encoded - grabbed):.2f}",
    }
    if settled is not None:
        headers |= {
            "X-Settled": str(int(settled.met)),
            "X-Settle-Ms": f"{1e3 * settled.waited_s:.0f}",
        }
    return web.Response(body=png, content_type="image/png", headers=headers)


def _settle_condition(request: web.Request) -> Condition:
    try:
        stable_s = float(request.query["stable_ms"]) / 1e3
        react_s = float(request.query.get("react_ms", "0")) / 1e3
        timeout_s = float(request.query.get("timeout_ms", "2000")) / 1e3
    except ValueError:
        raise GuestError(400, "stable_ms, react_ms and timeout_ms are numbers") from None
    return Condition(stable_s=stable_s, react_s=react_s, timeout_s=min(timeout_s, MAX_WAIT_S))


async def _action(request: web.Request) -> web.Response:
    """Carry out a typed action; ``action_error`` says why it was refused, untouched."""
    guest = request.app[GUEST]
    try:
        action = ACTION.validate_python(await read_object(request))
    except ValidationError as error:
        raise GuestError(400, f"not an action: {error.errors()[0]['msg']}") from None
    try:
        check(action, width=guest.screen.width, height=guest.screen.height)
    except ActionRefused as refusal:
        return web.json_response({"action_error": str(refusal)})
    except ValueError as error:
        raise GuestError(400, str(error)) from None
    guest.before = await guest.grab()
    await guest.on_screen(lambda: guest.screen.perform(action))
    return web.json_response({"action_error": None})


async def _wait(request: web.Request) -> web.Response:
    """Until the screen meets the condition, or 408 with what it lacks."""
    guest = request.app[GUEST]
    body = await read_object(request)
    try:
        condition = Condition(
            stable_s=float(body.get("stable_ms", 100)) / 1e3,
            window=window_query(body) if "window_name" in body else None,
            min_colors=int(body.get("min_colors", 0)),
            timeout_s=min(float(body.get("timeout_ms", 10_000)) / 1e3, MAX_WAIT_S),
        )
    except (TypeError, ValueError) as error:
        raise GuestError(400, f"not a condition: {error}") from None
    outcome = await guest.watcher.wait(condition)
    if not outcome.met:
        raise GuestError(408, f"after {outcome.waited_s:.1f} s {outcome.missing}")
    return web.json_response({"status": "success", "waited_ms": round(1e3 * outcome.waited_s)})


async def _rest(request: web.Request) -> web.Response:
    """Whether the programs came to rest in time; one that never does is no error."""
    guest = request.app[GUEST]
    body = await read_object(request)
    try:
        rest_s, limit_s = float(body["rest_ms"]) / 1e3, float(body["timeout_ms"]) / 1e3
    except (KeyError, TypeError, ValueError):
        raise GuestError(400, "rest_ms and timeout_ms must be numbers") from None
    is_resting = await asyncio.to_thread(
        rest.await_rest, rest_s, min(limit_s, MAX_WAIT_S), is_at_work=guest.at_work
    )
    return web.json_response({"is_resting": is_resting})


async def _platform(_: web.Request) -> web.Response:
    return web.Response(text=platform.system())


async def _cursor_position(request: web.Request) -> web.Response:
    guest = request.app[GUEST]
    return web.json_response(list(await guest.on_screen(guest.screen.cursor_position)))


async def _screen_size(request: web.Request) -> web.Response:
    screen = request.app[GUEST].screen
    return web.json_response({"width": screen.width, "height": screen.height})
