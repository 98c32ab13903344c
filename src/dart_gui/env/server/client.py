"""Desktops of env servers elsewhere, as a source for a cluster: placed by load, kept by heartbeat."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from dart_gui.env.desktop.client import Address
from dart_gui.env.providers.protocol import Desktop
from dart_gui.errors import AuthError, EnvError

log = logging.getLogger(__name__)

TTL_S = 60.0
BEAT_S = TTL_S / 4
ANSWER_S = 10.0
BOOT_S = 180.0
FULL_S = 600.0
"""For a place to become free anywhere."""
RETRY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a server says of itself."""

    url: str
    num_free: int  # desktops that we may have there now
    num_ready: int  # of them booted already
    share: float  # of its desktops that are leased


@dataclass(frozen=True, slots=True)
class _Held:
    url: str
    lease_id: str
    heart: asyncio.Task[None]


class ServerSource:
    """Several env servers as one. A server that does not answer is left out until it does."""

    def __init__(
        self,
        urls: Sequence[str],
        token: str,
        *,
        full_timeout_s: float = FULL_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        self._headers = {"Authorization": f"Bearer {token}"}
        self._full_timeout_s = full_timeout_s
        self._sleep = sleep
        self._session: aiohttp.ClientSession | None = None
        self._held: dict[str, _Held] = {}  # by desktop id, which is the lease's

    async def start(self) -> None:
        """Raises ``AuthError`` for a refused token, ``EnvError`` where no server answers."""
        self._session = aiohttp.ClientSession(headers=self._headers)
        try:
            await self._loads()
        except BaseException:
            await self.close()
            raise

    async def take(self) -> Desktop:
        """A desktop of the server that has most room, waiting for some where all are full.

        Raises:
            EnvError: none had room in time, none answers, or the desktop did not boot.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            for load in await self._loads():
                if (desktop := await self._open(load.url)) is not None:
                    return desktop
            if loop.time() - began > self._full_timeout_s:
                raise EnvError(
                    f"no desktop became free on {', '.join(self._urls)} within "
                    f"{self._full_timeout_s:g} s"
                )
            await self._sleep(RETRY_S)

    async def give_back(self, desktop: Desktop) -> None:
        held = self._held.pop(desktop.desktop_id, None)
        if held is None:
            return
        held.heart.cancel()
        await asyncio.gather(held.heart, return_exceptions=True)
        await asyncio.shield(self._release(held.url, held.lease_id))

    async def close(self) -> None:
        for held in list(self._held.values()):
            held.heart.cancel()
            await self._release(held.url, held.lease_id)
        self._held.clear()
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _loads(self) -> list[Load]:
        """Best first: booted desktops, then the smallest share that is leased."""
        answers = await asyncio.gather(*map(self._load, self._urls), return_exceptions=True)
        loads: list[Load] = []
        errors: list[BaseException] = []
        for answer in answers:
            if isinstance(answer, Load):
                loads.append(answer)
            elif isinstance(answer, EnvError):
                errors.append(answer)
            else:
                raise answer
        if not loads:
            raise EnvError(f"no env server answers: {'; '.join(map(str, errors))}")
        for error in errors:
            log.warning("%s", error)
        return sorted(
            (load for load in loads if load.num_free > 0),
            key=lambda load: (load.num_ready == 0, load.share),
        )

    async def _load(self, url: str) -> Load:
        status, body = await self._call("GET", f"{url}/v1/status", timeout_s=ANSWER_S)
        if status != 200:
            raise EnvError(f"{url}/v1/status answered {status}: {body.get('error')}")
        mine = body["token"]
        free = body["max_desktops"] - body["num_leased"]
        return Load(
            url=url,
            num_free=min(free, mine["limit"] - mine["num_leased"]),
            num_ready=body["num_ready"],
            share=body["num_leased"] / max(body["max_desktops"], 1),
        )

    async def _open(self, url: str) -> Desktop | None:
        """None where somebody else was faster."""
        asked = {"ttl_s": TTL_S}
        status, lease = await self._call("POST", f"{url}/v1/leases", body=asked, timeout_s=ANSWER_S)
        if status == 429:
            return None
        if status not in (201, 202):
            raise EnvError(f"{url} gave no lease, {status}: {lease.get('error')}")
        lease_id = str(lease["lease_id"])
        self._held[lease_id] = _Held(url, lease_id, asyncio.create_task(self._beat(url, lease_id)))
        try:
            lease = await self._await_running(url, lease_id)
        except BaseException:
            held = self._held.pop(lease_id)
            held.heart.cancel()
            await asyncio.shield(self._release(url, lease_id))
            raise
        address = Address(url=f"{url}/v1/leases/{lease_id}/guest", headers=self._headers)
        return Desktop(
            desktop_id=lease_id, address=address, created_at=lease["created_at"], boot_s=0.0
        )

    async def _await_running(self, url: str, lease_id: str) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + BOOT_S
        while loop.time() < deadline:
            path = f"{url}/v1/leases/{lease_id}?wait_s=10"
            status, lease = await self._call("GET", path, timeout_s=10 + ANSWER_S)
            if status != 200 or lease["state"] == "ended":
                text = lease.get("message") or lease.get("error")
                raise EnvError(f"the desktop of lease {lease_id} at {url} did not start: {text}")
            if lease["state"] == "running":
                return lease
        raise EnvError(f"the desktop of lease {lease_id} at {url} did not start in {BOOT_S:g} s")

    async def _beat(self, url: str, lease_id: str) -> None:
        """Until the lease is gone; who uses it finds that out by himself."""
        while True:
            await self._sleep(BEAT_S)
            try:
                path = f"{url}/v1/leases/{lease_id}/heartbeat"
                status, _ = await self._call("POST", path, timeout_s=ANSWER_S)
                if status == 404:
                    return
            except EnvError as error:
                log.warning("a heartbeat was missed: %s", error)

    async def _release(self, url: str, lease_id: str) -> None:
        """A lease that cannot be released ends by itself."""
        try:
            await self._call("DELETE", f"{url}/v1/leases/{lease_id}", timeout_s=ANSWER_S)
        except EnvError as error:
            log.warning("a lease was not released: %s", error)

    async def _call(
        self, method: str, url: str, *, body: dict[str, Any] | None = None, timeout_s: float
    ) -> tuple[int, dict[str, Any]]:
        if self._session is None:
            raise EnvError("the environment cluster is not running: it was not started, or closed")
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, url, json=body, timeout=timeout) as response:
                if response.status == 401:
                    raise AuthError(f"{url} refused our token: check env.server_token_file")
                answer = await response.json(content_type=None)
                return response.status, answer if isinstance(answer, dict) else {}
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise EnvError(f"{method} {url}: {type(error).__name__}: {error}") from None
