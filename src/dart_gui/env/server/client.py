"""Desktops of env servers elsewhere, as a source for a cluster: placed by load, kept by heartbeat."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from dart_gui.env.desktop.address import Address
from dart_gui.env.providers.protocol import Desktop
from dart_gui.errors import AuthError, EnvError

log = logging.getLogger(__name__)

TTL_S = 60.0
BEAT_S = TTL_S / 4
ANSWER_S = 10.0
CONNECT_S = 3.0
"""Of that: a host that drops what it is sent costs so much."""
BOOT_S = 180.0
FULL_S = 600.0
"""For a place to become free anywhere."""
RETRY_S = 1.0
REST_S = 30.0
"""For so long a server that failed comes after all others."""


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
    """Several env servers as one. One that does not answer, or whose desktops do not boot, comes after
    the others for a while."""

    def __init__(
        self,
        urls: Sequence[str],
        token: str,
        *,
        full_timeout_s: float = FULL_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        self._headers = {"Authorization": f"Bearer {token}"}
        self._full_timeout_s = full_timeout_s
        self._sleep = sleep
        self._clock = clock
        self._rests_until: dict[str, float] = {}  # by URL
        # From a look at the loads to the lease: all that take at once would see the same one empty.
        self._choosing = asyncio.Lock()
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
            EnvError: none had room in time, none answers, or no desktop booted on any that had room.
        """
        began = self._clock()
        failed: dict[str, EnvError] = {}  # by URL: each gets one try
        while True:
            async with self._choosing:
                held = await self._open_somewhere(failed)
            if held is not None:
                try:
                    return await self._started(held)
                except EnvError as error:
                    self._note_failure(held.url, error)
                    failed[held.url] = error
                    continue
            if failed:
                raise next(reversed(failed.values()))
            if self._clock() - began > self._full_timeout_s:
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
        held = list(self._held.values())
        self._held.clear()
        for each in held:
            each.heart.cancel()
        await asyncio.gather(*(self._release(each.url, each.lease_id) for each in held))
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _open_somewhere(self, failed: dict[str, EnvError]) -> _Held | None:
        """A lease, perhaps without its desktop yet, of the first server that gives one; None where
        all are full or ``failed``, to which those are added that failed now."""
        for load in await self._loads():
            if load.url in failed:
                continue
            try:
                if (held := await self._open(load.url)) is not None:
                    return held
            except EnvError as error:
                self._note_failure(load.url, error)
                failed[load.url] = error
        return None

    async def _loads(self) -> list[Load]:
        """Best first: booted desktops, then the smallest share that is leased. Servers that rest are
        asked where no other has room.

        Raises:
            EnvError: none answers.
            AuthError: one refuses our token.
        """
        now = self._clock()
        resting = [url for url in self._urls if self._rests_until.get(url, now) > now]
        loads: list[Load] = []
        errors: list[EnvError] = []
        for urls in ([url for url in self._urls if url not in resting], resting):
            if any(load.num_free > 0 for load in loads):
                break
            answers = await asyncio.gather(*map(self._load_or_error, urls))
            loads += [answer for answer in answers if isinstance(answer, Load)]
            errors += [answer for answer in answers if isinstance(answer, EnvError)]
        if not loads:
            raise EnvError(f"no env server answers: {'; '.join(map(str, errors))}")
        return sorted(
            (load for load in loads if load.num_free > 0),
            key=lambda load: (load.num_ready == 0, load.share),
        )

    async def _load_or_error(self, url: str) -> Load | EnvError:
        try:
            return await self._load(url)
        except EnvError as error:
            self._note_failure(url, error)
            return error

    def _note_failure(self, url: str, error: EnvError) -> None:
        log.warning("%s", error)
        self._rests_until[url] = self._clock() + REST_S

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

    async def _open(self, url: str) -> _Held | None:
        """A lease, kept alive from here on. None where somebody else was faster."""
        asked = {"ttl_s": TTL_S}
        status, lease = await self._call("POST", f"{url}/v1/leases", body=asked, timeout_s=ANSWER_S)
        if status == 429:
            return None
        if status not in (201, 202):
            raise EnvError(f"{url} gave no lease, {status}: {lease.get('error')}")
        lease_id = str(lease["lease_id"])
        held = _Held(url, lease_id, asyncio.create_task(self._beat(url, lease_id)))
        self._held[lease_id] = held
        return held

    async def _started(self, held: _Held) -> Desktop:
        """The desktop of a lease; else the lease is released. Raises ``EnvError``."""
        url, lease_id = held.url, held.lease_id
        try:
            lease = await self._await_running(url, lease_id)
        except BaseException:
            self._held.pop(lease_id, None)
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
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        try:
            async with self._session.request(method, url, json=body, timeout=timeout) as response:
                if response.status == 401:
                    raise AuthError(f"{url} refused our token: check env.server_token_file")
                answer = await response.json(content_type=None)
                return response.status, answer if isinstance(answer, dict) else {}
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise EnvError(f"{method} {url}: {type(error).__name__}: {error}") from None
