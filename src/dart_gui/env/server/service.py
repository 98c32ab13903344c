"""Leases over a pool of desktops: what the routes of the env server call."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.pool import DesktopPool
from dart_gui.env.providers.protocol import Desktop, Provider, Usage
from dart_gui.env.server.leases import (
    EndReason,
    Lease,
    LeaseState,
    LeaseTable,
    UnknownLeaseError,
)
from dart_gui.env.server.registry import Registry, Remembered
from dart_gui.env.server.tokens import Token, Tokens
from dart_gui.errors import DartError, DataError

log = logging.getLogger(__name__)

TICK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """What a client needs to choose a server, and a person to see how it does."""

    provider: str
    max_desktops: int
    num_leased: int
    num_ready: int
    num_booting: int
    num_ending: int  # given back, dead or nobody's, and not gone yet
    num_boot_failures: int
    num_quota_refusals: int
    num_orphans: int  # desktops that ran and that nobody held, as after a restart, ended
    num_ended: dict[str, int]  # leases by reason
    uptime_s: float
    warnings: list[str]


class EnvService:
    """Start and stop it. Between the two every desktop that the provider finds is booting, a spare, held
    by a lease, or being ended: a tick compares what it finds with what the pool and the leases know."""

    def __init__(
        self,
        provider: Provider,
        tokens: Tokens,
        registry: Registry,
        *,
        max_desktops: int,
        spares: int,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.tokens = tokens
        self._provider = provider
        self._registry = registry
        self._max_desktops = max_desktops
        self._clock = clock
        self._sleep = sleep
        self._pool = DesktopPool(provider, max_taken=max_desktops, spares=spares, sleep=sleep)
        self._table = LeaseTable(clock=clock)
        self._desktops: dict[str, Desktop] = {}  # by lease
        self._starts: dict[str, asyncio.Task[None]] = {}  # by lease
        self._changed = asyncio.Event()  # wakes all that wait for a lease; each looks again
        self._reaper: asyncio.Task[None] | None = None
        self._started_at = 0.0
        self._unsaved = ""  # why the registry on the disk is older than the leases

    async def start(self) -> None:
        """Take up what an earlier server left: its leases, and the end of what nobody holds.

        Raises:
            SetupError: the machine lacks what desktops need, or another server has the folder.
            DataError: the registry cannot be read or written.
        """
        self._started_at = self._clock()
        remembered = self._registry.open()
        self.tokens.restore_limits(remembered.changed_limits)
        await self._provider.start()
        found = {one.desktop_id: one for one in await self._provider.find() if one.is_running}
        for lease in remembered.leases:
            self._restore(lease, found)
        self._write()
        await self._pool.start()
        await self._pool.tend()
        self._reaper = asyncio.create_task(self._reap_forever())

    async def stop(self, *, keep_desktops: bool = False) -> None:
        """End every lease and desktop, or leave those that are leased to the next server."""
        if self._reaper is None:
            return
        self._reaper.cancel()
        await asyncio.gather(self._reaper, return_exceptions=True)
        self._reaper = None
        if keep_desktops:
            self._pool.disown(self._desktops.values())
        for lease in self._table.live():
            if not (keep_desktops and lease.lease_id in self._desktops):
                self._end(lease.lease_id, EndReason.STOPPED, "the server was stopped")
        await asyncio.gather(*self._starts.values(), return_exceptions=True)
        await self._pool.close()
        self._registry.close()

    def open(self, token: Token, *, ttl_s: float, client: str = "") -> Lease:
        """A lease whose desktop is on its way. Raises ``QuotaError``."""
        lease = self._table.open(token.name, limit=token.limit, ttl_s=ttl_s, client=client)
        self._save()
        task = asyncio.create_task(self._start_desktop(lease.lease_id))
        self._starts[lease.lease_id] = task
        task.add_done_callback(lambda _: self._starts.pop(lease.lease_id))
        return lease

    async def wait_started(self, lease_id: str, *, timeout_s: float) -> Lease:
        """The lease as soon as it is no longer starting, or after ``timeout_s`` as it is. Who waits is
        there: meanwhile the lease does not expire."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while (lease := self._table.get(lease_id)).state is LeaseState.STARTING:
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0:
                break
            self._table.heartbeat(lease_id)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(left_s, lease.ttl_s / 2))
        return lease

    def get(self, lease_id: str, token: Token) -> Lease:
        """Raises ``UnknownLeaseError`` for somebody else's, but to an administrator."""
        return self._table.get(lease_id, None if token.admin else token.name)

    def live(self, token: Token | None = None) -> list[Lease]:
        """Those that ``token`` may see; all, without one."""
        return self._table.live(None if token is None or token.admin else token.name)

    def heartbeat(self, lease_id: str, token: Token) -> Lease:
        self.get(lease_id, token)
        return self._table.heartbeat(lease_id)

    def desktop(self, lease_id: str, token: Token) -> Desktop:
        """The desktop of a running lease, which counts as a heartbeat.

        Raises:
            UnknownLeaseError: it is not running.
        """
        lease = self.heartbeat(lease_id, token)
        if lease_id not in self._desktops:
            raise UnknownLeaseError(f"the lease {lease_id} is {lease.state}, not running yet")
        return self._desktops[lease_id]

    def remember_ports(self, lease_id: str, ports: Mapping[str, int]) -> Lease:
        """For a server that is started again: who has the lease knows them by number."""
        lease = self._table.opened(lease_id, ports)
        self._save()
        return lease

    async def release(self, lease_id: str, token: Token) -> Lease:
        """Returns when its desktop has ended, or that failed and is tried again."""
        lease = self.get(lease_id, token)
        desktop = self._desktops.get(lease_id)
        reason = EndReason.RELEASED if lease.owner == token.name else EndReason.STOPPED
        lease = self._end(lease_id, reason)
        if desktop is not None:
            await self._pool.give_back(desktop)
        return lease

    async def usage(self, lease_id: str) -> Usage | None:
        desktop = self._desktops.get(lease_id)
        return None if desktop is None else await self._provider.usage(desktop.desktop_id)

    async def screenshot(self, lease_id: str) -> bytes:
        """Raises ``UnknownLeaseError`` for a lease without a desktop, ``EnvError`` for no answer."""
        desktop = self._desktops.get(lease_id)
        if desktop is None:
            raise UnknownLeaseError(f"the lease {lease_id} has no desktop now")
        client = GuestClient(desktop.address, what=f"the desktop of lease {lease_id}")
        try:
            return (await client.screenshot()).png
        finally:
            await client.close()

    def set_limit(self, name: str, limit: int) -> Token:
        token = self.tokens.set_limit(name, limit)
        self._save()
        return token

    def status(self) -> ServerStatus:
        pool = self._pool.stats()
        return ServerStatus(
            provider=self._provider.name,
            max_desktops=self._max_desktops,
            num_leased=len(self._table.live()),
            num_ready=pool.num_ready,
            num_booting=pool.num_booting,
            num_ending=pool.num_ending,
            num_boot_failures=pool.num_boot_failures,
            num_quota_refusals=self._table.num_refused,
            num_orphans=pool.num_strays,
            num_ended={reason.value: self._table.num_ended[reason] for reason in EndReason},
            uptime_s=self._clock() - self._started_at,
            warnings=[*self._provider.warnings(), *([self._unsaved] if self._unsaved else [])],
        )

    async def reap(self) -> None:
        """One tick: end the leases that have expired and those whose desktop has ended on its own,
        replace spares that have, and end desktops that nobody holds. It waits for none of the ends."""
        for lease in self._table.expired():
            log.warning("lease %s of %s expired", lease.lease_id, lease.owner)
            self._end(lease.lease_id, EndReason.EXPIRED, f"no heartbeat in {lease.ttl_s:g} s")
        if self._unsaved:
            self._save()
        before = dict(self._desktops)
        running = await self._pool.tend()
        for lease_id, desktop in before.items():
            if desktop.desktop_id not in running:
                self._end(lease_id, EndReason.LOST, "its desktop ended on its own")

    def _restore(self, lease: Lease, found: dict[str, Desktop]) -> None:
        if not lease.is_live:
            return
        self._table.restore(lease)
        desktop = found.get(lease.desktop_id)
        if lease.state is LeaseState.RUNNING and desktop is not None and desktop.is_running:
            self._desktops[lease.lease_id] = desktop
            self._pool.adopt(desktop)
        else:
            self._table.end(lease.lease_id, EndReason.LOST, "the server was killed")

    async def _start_desktop(self, lease_id: str) -> None:
        try:
            desktop = await self._pool.take()
        except DartError as error:
            self._end(lease_id, EndReason.BOOT_FAILED, str(error))
            return
        if not self._table.get(lease_id).is_live:  # released while it booted
            self._pool.discard(desktop)
            return
        self._desktops[lease_id] = desktop
        lease = self._table.ready(lease_id, desktop.desktop_id)
        log.info("lease %s of %s has desktop %s", lease_id, lease.owner, desktop.desktop_id)
        self._changed.set()
        self._save()

    def _end(self, lease_id: str, reason: EndReason, message: str = "") -> Lease:
        """Its desktop begins to end. Idempotent."""
        if self._table.get(lease_id).is_live:
            log.info("lease %s ends, %s%s", lease_id, reason, message and f": {message}")
        lease = self._table.end(lease_id, reason, message)
        start = self._starts.get(lease_id)
        if start is not None and start is not asyncio.current_task():
            start.cancel()
        desktop = self._desktops.pop(lease_id, None)
        if desktop is not None:
            self._pool.discard(desktop)
        self._changed.set()
        self._save()
        return lease

    def _save(self) -> None:
        """A full disk is no reason to refuse a desktop, or to keep one: a tick tries again."""
        try:
            self._write()
        except DataError as error:
            if not self._unsaved:
                log.warning("%s. Started again, this server would not know its leases", error)
            self._unsaved = str(error)
        else:
            self._unsaved = ""

    def _write(self) -> None:
        self._registry.save(Remembered(self._table.live(), self.tokens.changed_limits()))

    async def _reap_forever(self) -> None:
        while True:
            await self._sleep(TICK_S)
            try:
                await self.reap()
            except DartError as error:
                log.warning("the reaper goes on after: %s", error)
