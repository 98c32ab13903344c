"""The routes of the env server, under ``/v1``, and the way through it to a desktop's guest API.

Every route wants a token: ``Authorization: Bearer TOKEN``, or the prefix ``/t/TOKEN`` for clients that
cannot send a header. The one exception is the dashboard's page, which holds no data and asks for it.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import aiohttp
from aiohttp import web
from PIL import Image

from dart_gui.env.desktop.address import Address
from dart_gui.env.desktop.ports import AUTHORIZATION, MARK
from dart_gui.env.server.leases import (
    MAX_TTL_S,
    MIN_TTL_S,
    LeaseState,
    QuotaError,
    UnknownLeaseError,
    lease_json,
)
from dart_gui.env.server.metrics import exposition
from dart_gui.env.server.service import EnvService
from dart_gui.env.server.tokens import Token
from dart_gui.env.sockets import relay_socket, wants_socket
from dart_gui.errors import AuthError, ConfigError, DartError, EnvError, boundary

log = logging.getLogger(__name__)

TTL_S = 120.0
MAX_WAIT_S = 600.0
MAX_BODY = 512 << 20
THUMBNAIL = (480, 270)
GUEST_S = 1900.0  # longer than any wait within the guest API
SERVICE = web.AppKey("service", EnvService)
GUESTS = web.AppKey("guests", dict[str, aiohttp.ClientSession])
TOKEN: web.RequestKey[Token] = web.RequestKey("token", Token)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "te", "trailer"}
_NOT_FORWARDED = _HOP_BY_HOP | {"authorization", "host", "content-length", "expect"}
_OPEN_PATHS = ("/dashboard",)
OWN_TOKENS = "finds_its_own_token"
"""Attribute of a handler that looks for the token itself, such as in the body."""


def new_app(service: EnvService) -> web.Application:
    """The routes of ours; others may be added, and see to their own tokens (``OWN_TOKENS``)."""
    app = web.Application(client_max_size=MAX_BODY, middlewares=[errors, authenticated])
    app[SERVICE] = service
    app[GUESTS] = {}
    app.on_cleanup.append(_close_guests)
    app.router.add_get("/dashboard", _dashboard)
    add_routes(
        app,
        ("GET", "/metrics", _metrics),
        ("GET", "/v1/status", _status),
        ("GET", "/v1/leases", _list),
        ("POST", "/v1/leases", _open),
        ("GET", "/v1/leases/{lease}", _get),
        ("DELETE", "/v1/leases/{lease}", _release),
        ("POST", "/v1/leases/{lease}/heartbeat", _heartbeat),
        ("GET", "/v1/leases/{lease}/usage", _usage),
        ("GET", "/v1/leases/{lease}/thumbnail", _thumbnail),
        ("*", "/v1/leases/{lease}/guest/{path:.*}", _guest),
        ("GET", "/v1/tokens", _tokens),
        ("PUT", "/v1/tokens/{name}/limit", _set_limit),
    )
    return app


def add_routes(app: web.Application, *routes: tuple[str, str, Handler]) -> None:
    """Each under its path, and under ``/t/TOKEN`` and its path."""
    for method, path, handler in routes:
        for prefix in ("", "/t/{secret}"):
            app.router.add_route(method, prefix + path, handler)


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error that we explain as JSON: ``{"error": text}``."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return problem(error.status, f"{request.method} {request.path}: {error.reason}")
    except AuthError as error:
        return problem(401, str(error))
    except QuotaError as error:
        return problem(429, str(error), current=error.current, limit=error.limit)
    except UnknownLeaseError as error:
        return problem(404, str(error))
    except ConfigError as error:
        return problem(400, str(error))
    except EnvError as error:
        return problem(502, str(error))
    except DartError as error:
        return problem(500, str(error))


@web.middleware
async def authenticated(request: web.Request, handler: Handler) -> web.StreamResponse:
    is_page = request.path in _OPEN_PATHS and request.method == "GET"
    if is_page or getattr(handler, OWN_TOKENS, False):
        return await handler(request)
    request[TOKEN] = request.app[SERVICE].tokens.find(given_secret(request))
    return await handler(request)


def given_secret(request: web.Request) -> str:
    """Of the header, else of the path; empty for none."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return secret.strip()
    return request.match_info.get("secret", "")


def problem(status: int, message: str, **more: Any) -> web.Response:
    return web.json_response({"error": message, **more}, status=status)


async def read_object(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request, empty for none. Raises ``ConfigError`` for anything else."""
    text = await request.text()
    try:
        body = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ConfigError(f"the body must be a JSON object, got {type(body).__name__}")
    return body


def number(value: Any, name: str, *, low: float, high: float) -> float:
    """Raises ``ConfigError`` for what is no number, or outside."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")
    return float(value)


async def _open(request: web.Request) -> web.Response:
    """202 with a lease that is starting, to be polled; with ``wait_s`` the same once it runs (201),
    or 503 where it did not start."""
    service, token = request.app[SERVICE], request[TOKEN]
    body = await read_object(request)
    ttl_s = number(body.get("ttl_s", TTL_S), "ttl_s", low=MIN_TTL_S, high=MAX_TTL_S)
    wait_s = number(body.get("wait_s", 0), "wait_s", low=0, high=MAX_WAIT_S)
    lease = service.open(token, ttl_s=ttl_s, client=request.remote or "")
    if wait_s:
        lease = await service.wait_started(lease.lease_id, timeout_s=wait_s)
    status = {LeaseState.STARTING: 202, LeaseState.RUNNING: 201, LeaseState.ENDED: 503}
    return web.json_response(lease_json(lease), status=status[lease.state])


async def _get(request: web.Request) -> web.Response:
    """The lease; with ``?wait_s=`` as soon as it is no longer starting."""
    service = request.app[SERVICE]
    lease = service.get(request.match_info["lease"], request[TOKEN])
    if "wait_s" in request.query:
        try:
            given = float(request.query["wait_s"])
        except ValueError:
            given = -1.0
        wait_s = number(given, "wait_s", low=0, high=MAX_WAIT_S)
        lease = await service.wait_started(lease.lease_id, timeout_s=wait_s)
    return web.json_response(lease_json(lease))


async def _list(request: web.Request) -> web.Response:
    leases = request.app[SERVICE].live(request[TOKEN])
    return web.json_response({"leases": [lease_json(lease) for lease in leases]})


async def _release(request: web.Request) -> web.Response:
    lease = await request.app[SERVICE].release(request.match_info["lease"], request[TOKEN])
    return web.json_response(lease_json(lease))


async def _heartbeat(request: web.Request) -> web.Response:
    lease = request.app[SERVICE].heartbeat(request.match_info["lease"], request[TOKEN])
    return web.json_response(lease_json(lease))


async def _usage(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    lease = service.get(request.match_info["lease"], request[TOKEN])
    usage = await service.usage(lease.lease_id)
    return web.json_response(None if usage is None else asdict(usage))


async def _thumbnail(request: web.Request) -> web.Response:
    """A small JPEG of the screen. Looking at a desktop does not keep its lease alive."""
    service = request.app[SERVICE]
    lease = service.get(request.match_info["lease"], request[TOKEN])
    png = await service.screenshot(lease.lease_id)
    jpeg = await asyncio.to_thread(_shrink, png)
    return web.Response(body=jpeg, content_type="image/jpeg")


def _shrink(png: bytes) -> bytes:
    """Raises ``EnvError`` for what is no picture."""
    with boundary(EnvError, "the desktop's screenshot is no picture"):
        image = Image.open(io.BytesIO(png)).convert("RGB")
        image.thumbnail(THUMBNAIL)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
    return file.getvalue()


async def _status(request: web.Request) -> web.Response:
    service, token = request.app[SERVICE], request[TOKEN]
    held = len([lease for lease in service.live() if lease.owner == token.name])
    mine = {"name": token.name, "num_leased": held, "limit": token.limit, "admin": token.admin}
    return web.json_response(asdict(service.status()) | {"token": mine})


async def _tokens(request: web.Request) -> web.Response:
    """Names, limits and use; never a secret."""
    service, token = request.app[SERVICE], request[TOKEN]
    live = service.live()
    return web.json_response(
        {
            "tokens": [
                {
                    "name": one.name,
                    "limit": one.limit,
                    "admin": one.admin,
                    "num_leased": len([lease for lease in live if lease.owner == one.name]),
                }
                for one in service.tokens.all()
                if token.admin or one.name == token.name
            ]
        }
    )


async def _set_limit(request: web.Request) -> web.Response:
    require_admin(request[TOKEN])
    limit = number((await read_object(request)).get("limit"), "limit", low=0, high=1e6)
    token = request.app[SERVICE].set_limit(request.match_info["name"], int(limit))
    return web.json_response({"name": token.name, "limit": token.limit})


def require_admin(token: Token) -> None:
    """Raises ``HTTPForbidden``."""
    if not token.admin:
        raise web.HTTPForbidden(reason=f"the token {token.name} is not an administrator's")


async def _metrics(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    text = exposition(service.status(), service.live(), service.tokens.all())
    return web.Response(text=text, content_type="text/plain", charset="utf-8")


async def _dashboard(_: web.Request) -> web.Response:
    page = files("dart_gui.env.server").joinpath("dashboard.html").read_text(encoding="utf-8")
    policy = "default-src 'self' 'unsafe-inline'; img-src 'self' blob: data:"
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
    return web.Response(text=page, content_type="text/html", headers=headers)


async def _guest(request: web.Request) -> web.StreamResponse:
    """Hand a request on to the desktop's guest server, body and answer as they stream, or to a port
    that the desktop publishes beside it."""
    lease_id = request.match_info["lease"]
    address = request.app[SERVICE].desktop(lease_id, request[TOKEN]).address
    session = _session(request.app, lease_id, address)
    route = f"/{request.match_info['path']}"
    url, port = address.url_of(route), address.published_port(route)
    headers = {k: v for k, v in request.headers.items() if k.lower() not in _NOT_FORWARDED}
    if port is not None and (given := headers.pop(AUTHORIZATION, None)):
        headers["Authorization"] = given
    mark = {} if port is None else {MARK: str(port)}
    body = request.content if request.body_exists else None
    try:
        if wants_socket(request):
            return await relay_socket(request, session, url)
        async with session.request(
            request.method, url, params=request.query, headers=headers, data=body
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP}
            response = web.StreamResponse(status=answer.status, headers=kept | mark)
            await response.prepare(request)
            async for chunk in answer.content.iter_chunked(1 << 16):
                await response.write(chunk)
            await response.write_eof()
            return response
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        text = f"{type(error).__name__}: {error}"
        if port is not None:  # a program that does not run is no fault of the desktop
            text = f"port {port} of the desktop: {text}"
            return web.Response(status=502, text=text, headers=mark)
        raise EnvError(f"the desktop of lease {lease_id} does not answer: {text}") from None


def _session(app: web.Application, lease_id: str, address: Address) -> aiohttp.ClientSession:
    sessions = app[GUESTS]
    live = {lease.lease_id for lease in app[SERVICE].live()}
    for old in set(sessions) - live:
        app.loop.create_task(sessions.pop(old).close())
    if lease_id not in sessions:
        connector: aiohttp.BaseConnector = (
            aiohttp.UnixConnector(str(address.socket), limit=0)
            if address.socket is not None
            else aiohttp.TCPConnector(limit=0)
        )
        timeout = aiohttp.ClientTimeout(total=GUEST_S)
        sessions[lease_id] = aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False
        )
    return sessions[lease_id]


async def _close_guests(app: web.Application) -> None:
    for session in app[GUESTS].values():
        await session.close()
