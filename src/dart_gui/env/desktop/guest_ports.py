"""Ports of programs in the desktop, for OSWorld's getters outside: ``/port/PORT/PATH`` is what
``http://127.0.0.1:PORT/PATH`` is in the desktop, web sockets included."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from dart_gui.env.desktop.guest import GuestError
from dart_gui.env.desktop.ports import AUTHORIZATION, CHROME, MARK, VLC
from dart_gui.env.sockets import relay_socket, wants_socket

ANSWER_S = 60.0
SESSION = web.AppKey("ports", aiohttp.ClientSession)


def add_routes(app: web.Application) -> None:
    app.cleanup_ctx.append(_session)
    app.router.add_route("*", "/port/{port}/{path:.*}", _port)


async def _session(app: web.Application) -> AsyncIterator[None]:
    timeout = aiohttp.ClientTimeout(total=ANSWER_S)
    async with aiohttp.ClientSession(timeout=timeout) as app[SESSION]:
        yield


async def _port(request: web.Request) -> web.StreamResponse:
    """502 where nothing listens there."""
    port, path = request.match_info["port"], request.match_info["path"]
    if port not in (str(CHROME), str(VLC)):
        raise GuestError(403, f"port {port} is not for the outside")
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
        text = f"port {port} of the desktop: {type(error).__name__}: {error}"
        return web.Response(status=502, text=text, headers={MARK: port})
