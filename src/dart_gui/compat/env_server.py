"""The routes of the published env server ("docker_server"), so that its clients run against ours.

Same paths, JSON and codes. What differs, on purpose: every route wants a token, found in the header,
the JSON body or the query, in that order; a caller sees its own desktops and its own token only, an
administrator's all; ``/set_token_limit``, ``/cleanup``, ``/request_logs`` and, for what is not the
caller's, ``/remove_all_containers`` demand an administrator's token, and none of them touches
anything but this server's desktops.

Published clients talk to the guest's ports directly. That is opt-in: ports per lease that admit the
lessee's address only, and whose traffic keeps the lease alive. They are the same after a restart.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from aiohttp import web

from dart_gui.compat.host_use import HostUse
from dart_gui.compat.lease_ports import LeasePorts, published_ports
from dart_gui.env.server.app import OWN_TOKENS, TOKEN, Handler, given_secret
from dart_gui.env.server.leases import Lease, LeaseState, QuotaError, UnknownLeaseError
from dart_gui.env.server.service import EnvService
from dart_gui.env.server.tokens import Token
from dart_gui.errors import AuthError, ConfigError

START_S = 300.0
"""The published limit on a start, which its clients wait for."""
IDLE_TTL_S = 1800.0
"""Published clients send no heartbeat: a lease ends after so long without a request."""
MAX_LOG = 1000
RESOURCES = (
    *("cpu_percent", "memory_usage_bytes", "memory_limit_bytes", "memory_percent"),
    *("net_rx_bytes", "net_tx_bytes", "blk_read_bytes", "blk_write_bytes"),
)
"""What the published server tells of a container; null is what ours does not measure."""

Clock = Callable[[], float]


class PublishedRoutes:
    def __init__(self, service: EnvService, *, forward_host: str, clock: Clock = time.time) -> None:
        self._service = service
        self._forward_host = forward_host
        self._clock = clock
        self._ports = LeasePorts(service, host=forward_host)
        self._host = HostUse()
        self._log: deque[dict[str, Any]] = deque(maxlen=MAX_LOG)

    def add_to(self, app: web.Application) -> None:
        routes: list[tuple[str, str, Handler]] = [
            ("GET", "/ping", self._ping),
            ("GET", "/start_emulator", self._start),
            ("POST", "/start_emulator", self._start),
            ("POST", "/stop_emulator", self._stop),
            ("DELETE", "/emulators/{id}", self._stop),
            ("GET", "/status", self._status),
            ("GET", "/tokens", self._tokens),
            ("GET", "/emulators", self._emulators),
            ("GET", "/emulator_resources", self._all_resources),
            ("GET", "/emulator_resources/{id}", self._resources),
            ("GET", "/emulators_by_token", self._by_token),
            ("GET", "/emulator_status/{id}", self._emulator_status),
            ("POST", "/set_token_limit", self._set_limit),
            ("POST", "/stop_all_emulators", self._stop_all),
            ("POST", "/remove_all_containers", self._remove_all),
            ("POST", "/cleanup", self._cleanup),
            ("GET", "/request_logs", self._request_logs),
        ]
        for method, path, handler in routes:
            for prefix in ("", "/t/{secret}"):
                app.router.add_route(method, prefix + path, self._published(handler))
        app.on_startup.append(self._reopen)
        app.on_cleanup.append(self._close)

    def _published(self, handler: Handler) -> Handler:
        """Errors in the published shape: a message, and the status again as ``code``."""

        async def wrapped(request: web.Request) -> web.StreamResponse:
            secret = await published_secret(request)
            if not secret:
                return answer(401, "Token required")
            try:
                request[TOKEN] = self._service.tokens.find(secret)
            except AuthError:
                return answer(403, "Unknown or unauthorized token")
            try:
                self._note(request)
                await self._ports.close_ended()
                return await handler(request)
            except QuotaError as error:
                name = request[TOKEN].name
                used = f"{error.current}/{error.limit}"
                return answer(429, f"Token quota exceeded for '{name}': {used}")
            except UnknownLeaseError:
                return answer(404, "Emulator not found", status="not_found")
            except ConfigError as error:
                return answer(400, str(error))

        setattr(wrapped, OWN_TOKENS, True)
        return wrapped

    def _note(self, request: web.Request) -> None:
        """Neither bodies nor secrets: the published log had both."""
        secret = request.match_info.get("secret")
        path = request.path.removeprefix(f"/t/{secret}") if secret else request.path
        self._log.append(
            {
                "ts": self._clock(),
                "method": request.method,
                "path": path,
                "token": request[TOKEN].name,
                "json": None,
            }
        )

    async def _ping(self, _: web.Request) -> web.Response:
        return web.json_response({"message": "Hello, World!"})

    async def _start(self, request: web.Request) -> web.Response:
        if not self._forward_host:
            return answer(
                500,
                "Failed to start emulator: this server opens no ports for published clients; start "
                "it with --forward-host",
            )
        token = request[TOKEN]
        client = request.remote or ""
        lease = self._service.open(token, ttl_s=IDLE_TTL_S, client=client)
        try:
            lease = await self._service.wait_started(lease.lease_id, timeout_s=START_S)
            if lease.state is not LeaseState.RUNNING:
                text = lease.message or f"not ready within {START_S:g} s"
                raise TimeoutError(text)
            if request.transport is None:  # else it and its quota would stay until they are idle
                raise TimeoutError("the client did not wait for it")
            lease = await self._ports.open(lease)
        except OSError as error:  # TimeoutError too
            await self._release(lease, token)
            return answer(500, f"Failed to start emulator: {error}")
        except BaseException:  # a client that went away must not keep the desktop
            await self._release(lease, token)
            raise
        data = {
            "emulator_id": lease.lease_id,
            **published_ports(lease),
            "token": secret_of(request),
        }
        return answer(0, "Emulator started successfully", data=data)

    async def _stop(self, request: web.Request) -> web.Response:
        lease_id = request.match_info.get("id") or (await json_body(request)).get("emulator_id")
        if not lease_id:
            return answer(400, "emulator_id is required")
        await self._release(self._find(request, str(lease_id)), request[TOKEN])
        return answer(0, "Emulator stopped successfully")

    async def _status(self, request: web.Request) -> web.Response:
        rows = self._token_rows(request)
        tokens = [
            {
                "token": name,
                "current": current,
                "limit": limit,
                "available": max(limit - current, 0),
            }
            for name, current, limit in rows
        ]
        status = self._service.status()
        running = self._running(request[TOKEN])
        return web.json_response(
            {
                "uptime_seconds": int(status.uptime_s),
                "cpu_percent": self._host.cpu_percent(),
                "memory_percent": self._host.memory_percent(),
                "total_containers_for_image": status.num_leased + status.num_ready,
                "total_emulators": len(running),
                "tokens": tokens,
            }
        )

    async def _tokens(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                name: {"current": current, "limit": limit, "emulator_count": current}
                for name, current, limit in self._token_rows(request)
            }
        )

    async def _emulators(self, request: web.Request) -> web.Response:
        return web.json_response([self._describe(lease, request) for lease in self._asked(request)])

    async def _all_resources(self, request: web.Request) -> web.Response:
        found = [await self._with_resources(lease, request) for lease in self._asked(request)]
        return web.json_response(found)

    async def _resources(self, request: web.Request) -> web.Response:
        lease = self._find(request, request.match_info["id"])
        return web.json_response(await self._with_resources(lease, request))

    async def _by_token(self, request: web.Request) -> web.Response:
        if not request.query.get("token"):
            return answer(400, "token is required")
        return web.json_response([lease.lease_id for lease in self._asked(request)])

    async def _emulator_status(self, request: web.Request) -> web.Response:
        item = self._describe(self._find(request, request.match_info["id"]), request)
        del item["start_time"]
        return web.json_response(item | {"status": "running"})

    async def _set_limit(self, request: web.Request) -> web.Response:
        if not request[TOKEN].admin:
            return answer(403, "Forbidden: an administrator's token is required")
        body = await json_body(request)
        try:
            limit = int(body["limit"])
        except (KeyError, TypeError, ValueError):
            return answer(400, "Valid integer 'limit' is required")
        named = str(body.get("token", "")).strip()
        if not named:
            return answer(400, "'token' is required")
        token = self._named(named)
        if token is None:
            return answer(400, f"Unknown token '{named}'. Token creation is disabled.")
        self._service.set_limit(token.name, limit)
        return answer(0, f"Token '{named}' limit set to {limit}")

    async def _stop_all(self, request: web.Request) -> web.Response:
        """The caller's own, an administrator's too."""
        token = request[TOKEN]
        mine = [lease for lease in self._running(token) if lease.owner == token.name]
        await asyncio.gather(*(self._release(lease, token) for lease in mine))
        return answer(
            0,
            f"Stopped {len(mine)} emulator(s), 0 failed",
            stopped_count=len(mine),
            failed_count=0,
            stopped_ids=[lease.lease_id for lease in mine],
        )

    async def _remove_all(self, request: web.Request) -> web.Response:
        """Desktops of at least ``min_age`` minutes: the caller's own, or all for an administrator."""
        body = await json_body(request)
        try:
            min_age_s = 60 * float(body.get("min_age", 0))
        except (TypeError, ValueError):
            return answer(400, "min_age must be a number of minutes")
        dry_run, token = bool(body.get("dry_run", False)), request[TOKEN]
        now = self._clock()
        old = [lease for lease in self._running(token) if now - lease.created_at >= min_age_s]
        await asyncio.gather(*(self._release(lease, token) for lease in old if not dry_run))
        verb = "[DRY RUN] Would remove" if dry_run else "Removed"
        return answer(
            0,
            f"{verb} {len(old)} container(s), 0 failed",
            removed_count=len(old),
            failed_count=0,
            removed_ids=[lease.desktop_id for lease in old],
            dry_run=dry_run,
        )

    async def _cleanup(self, request: web.Request) -> web.Response:
        if not request[TOKEN].admin:
            return answer(403, "Forbidden: an administrator's token is required")
        token = request[TOKEN]
        await asyncio.gather(*(self._release(lease, token) for lease in self._running(token)))
        return answer(0, "Cleanup executed", ret=0)

    async def _request_logs(self, request: web.Request) -> web.Response:
        if not request[TOKEN].admin:
            return answer(403, "Forbidden: an administrator's token is required")
        limit = request.query.get("limit", "200")
        newest = list(self._log)[-int(limit) :] if limit.isdigit() and int(limit) else []
        return web.json_response(newest)

    def _named(self, text: str) -> Token | None:
        """By its name, or by its secret, which is the name that published servers know."""
        try:
            return self._service.tokens.get(text) or self._service.tokens.find(text)
        except AuthError:
            return None

    def _running(self, token: Token) -> list[Lease]:
        return [lease for lease in self._service.live(token) if lease.state is LeaseState.RUNNING]

    def _asked(self, request: web.Request) -> list[Lease]:
        """What ``?token=`` asks for, among what the caller may see."""
        found = self._running(request[TOKEN])
        if not (text := request.query.get("token", "").strip()):
            return found
        named = self._named(text)
        return [lease for lease in found if named is not None and lease.owner == named.name]

    def _find(self, request: web.Request, lease_id: str) -> Lease:
        lease = self._service.get(lease_id, request[TOKEN])
        if not lease.is_live:
            raise UnknownLeaseError(f"there is no lease {lease_id}")
        return lease

    def _token_rows(self, request: web.Request) -> list[tuple[str, int, int]]:
        """(token, current, limit): the caller's by its secret, which it has; others by name."""
        caller = request[TOKEN]
        live = self._service.live()
        rows = []
        for token in self._service.tokens.all() if caller.admin else [caller]:
            shown = secret_of(request) if token.name == caller.name else token.name
            rows.append((shown, sum(lease.owner == token.name for lease in live), token.limit))
        return rows

    def _describe(self, lease: Lease, request: web.Request) -> dict[str, Any]:
        caller = request[TOKEN]
        shown = secret_of(request) if lease.owner == caller.name else lease.owner
        return {
            "emulator_id": lease.lease_id,
            "token": shown,
            **published_ports(lease),
            "start_time": lease.created_at,
            "duration_minutes": int((self._clock() - lease.created_at) / 60),
            "container_id": lease.desktop_id or None,
        }

    async def _with_resources(self, lease: Lease, request: web.Request) -> dict[str, Any]:
        usage = await self._service.usage(lease.lease_id)
        resources: dict[str, Any] = {"error": "container not available"}
        if usage is not None:
            resources = dict.fromkeys(RESOURCES) | {"memory_usage_bytes": usage.memory_bytes}
        return self._describe(lease, request) | {"resources": resources}

    async def _release(self, lease: Lease, token: Token) -> None:
        await self._ports.close(lease.lease_id)
        await self._service.release(lease.lease_id, token)

    async def _reopen(self, _: web.Application) -> None:
        await self._ports.reopen()

    async def _close(self, _: web.Application) -> None:
        await self._ports.close_all()


def answer(code: int, message: str, **more: Any) -> web.Response:
    """The published form; ``code`` 0 is HTTP 200, any other is the HTTP status too."""
    body = {"message": message, "code": code, **more}
    return web.json_response(body, status=code or 200)


async def published_secret(request: web.Request) -> str:
    """Header (or path), then JSON body, then query."""
    if secret := given_secret(request):
        return secret
    if request.content_type == "application/json" and request.path != "/set_token_limit":
        token = (await json_body(request)).get("token")
        if token:
            return str(token).strip()
    return request.query.get("token", "").strip()


def secret_of(request: web.Request) -> str:
    return request[TOKEN].token


async def json_body(request: web.Request) -> dict[str, Any]:
    """What is no JSON object is an empty one, as published."""
    try:
        body = json.loads(await request.text() or "{}")
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
