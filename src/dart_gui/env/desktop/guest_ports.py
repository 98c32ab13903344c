"""Ports of programs in the desktop, for OSWorld's getters outside: ``/port/PORT/PATH`` is what
``http://127.0.0.1:PORT/PATH`` is in it, web sockets included; ``/tunnel/PORT`` is a connection to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from dart_gui.env.desktop import tunnel
from dart_gui.env.desktop.guest import GuestError
from dart_gui.env.desktop.ports import AUTHORIZATION, CHROME, MARK, VLC
from dart_gui.env.sockets import relay_socket, wants_socket

ANSWER_S = 60.0
SESSION = web.AppKey("ports", aiohttp.ClientSession)


def add_routes(app: web.Application) -> None:
    app.cleanup_ctx.append(_session)
    app.router.add_route("*", "/port/{port}/{path:.*}", _port)
    app.router.add_get("/tunnel/{port}", _tunnel)


async def _session(app: web.Application) -> AsyncIterator[None]:
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    async with aiohttp.ClientSession(timeout=timeout) as app[SESSION]:
        yield


async def _port(request: web.Request) -> web.StreamResponse:
    """502 where nothing listens there."""
    port, path = _admitted(request), request.match_info["path"]
    session = request.app[SESSION]
    url = f"http://127.0.0.1:{port}/{path}"
    given = {
        "Content-Type": request.headers.get("Content-Type"),
        "Authorization": request.headers.get(AUTHORIZATION),
    }
    try:
        if wants_socket(request):
            return await relay_socket(request, session, url)
        async with session.request(
            request.method,
            url,
            params=request.query,
            data=await request.read(),
            headers={name: value for name, value in given.items() if value},
        ) as answer:
            kind = {"Content-Type": answer.headers.get("Content-Type", "text/plain"), MARK: port}
            return web.Response(status=answer.status, body=await answer.read(), headers=kind)
    except (aiohttp.ClientError, TimeoutError) as error:
        return _unreachable(port, error)


async def _tunnel(request: web.Request) -> web.StreamResponse:
    port = _admitted(request)
    if not wants_socket(request):
        raise GuestError(400, "a tunnel is a web socket")
    try:
        return await tunnel.serve(request, int(port))
    except OSError as error:
        return _unreachable(port, error)


def _admitted(request: web.Request) -> str:
    port = request.match_info["port"]
    if port not in (str(CHROME), str(VLC)):
        raise GuestError(403, f"port {port} is not for the outside")
    return port


def _unreachable(port: str, error: Exception) -> web.Response:
    text = f"port {port} of the desktop: {type(error).__name__}: {error}"
    return web.Response(status=502, text=text, headers={MARK: port})
