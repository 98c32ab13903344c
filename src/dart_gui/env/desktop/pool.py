"""A warm pool: desktops that are booted before they are wanted, each used once."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.providers.protocol import Desktop, Provider
from dart_gui.errors import DartError, EnvError

log = logging.getLogger(__name__)

MAX_BOOTS = 2
"""At once: more of them on a busy machine only make each one slow."""
BACKOFF_S = 5.0
"""After a spare that did not boot, before the next one is tried."""
CHECK_S = 10.0
"""For a spare to show that it still answers."""


class DesktopSource(Protocol):
    """Who has desktops to give: a pool on this machine, or servers elsewhere."""

    async def start(self) -> None: ...

    async def take(self) -> Desktop:
        """A fresh desktop; waits for a free one. Raises ``EnvError``."""
        ...

    async def give_back(self, desktop: Desktop) -> None:
        """Ends it. Raises nothing that is expected."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    num_ready: int  # booted, waiting to be taken
    num_booting: int
    num_taken: int
    num_boot_failures: int  # since the start


class DesktopPool:
    """At most ``max_taken`` desktops in use, and ``spares`` more that wait for their turn."""

    def __init__(
        self,
        provider: Provider,
        *,
        max_taken: int,
        spares: int,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex[:16],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._provider = provider
        self._spares = spares
        self._new_id = new_id
        self._sleep = sleep
        self._max_taken = max_taken
        self._num_held = 0  # places of ``max_taken`` that are taken, or about to be
        self._freed = asyncio.Condition()
        self._boots = asyncio.Semaphore(MAX_BOOTS)
        self._ready: deque[Desktop] = deque()
        self._taken: dict[str, Desktop] = {}
        self._num_booting = 0
        self._num_boot_failures = 0
        self._wanted = asyncio.Event()  # the number of spares may be wrong
        self._keeper: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Raises ``SetupError`` where the provider cannot work here."""
        await self._provider.start()
        self._keeper = asyncio.create_task(self._keep_spares())

    async def take(self) -> Desktop:
        """A spare, else one that is booted now.

        Raises:
            EnvError: it did not boot; the pool is not running.
        """
        self._check_running()
        async with self._freed:
            await self._freed.wait_for(lambda: self._num_held < self._max_taken)
            self._num_held += 1
        try:
            desktop = await self._next_ready() or await self._boot()
        except BaseException:
            await self._release()
            raise
        finally:
            self._wanted.set()
        self._taken[desktop.desktop_id] = desktop
        return desktop

    def adopt(self, desktop: Desktop) -> None:
        """Count a desktop that was taken before this pool was, as after a restart."""
        self._taken[desktop.desktop_id] = desktop
        self._num_held += 1

    def disown(self, desktops: Iterable[Desktop]) -> None:
        """Leave desktops that were taken as they are when the pool is closed."""
        for desktop in desktops:
            self._taken.pop(desktop.desktop_id, None)

    async def give_back(self, desktop: Desktop) -> None:
        if self._taken.pop(desktop.desktop_id, None) is None:
            return
        try:
            await asyncio.shield(self._end(desktop))
        finally:
            await self._release()
            self._wanted.set()

    async def close(self) -> None:
        """End every desktop that came from here. Idempotent."""
        if self._keeper is None:
            return
        tasks = [self._keeper, *self._tasks]
        self._keeper = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        desktops = [*self._ready, *self._taken.values()]
        self._ready.clear()
        self._taken.clear()
        await asyncio.gather(*map(self._end, desktops))
        await self._provider.close()

    def stats(self) -> PoolStats:
        return PoolStats(
            num_ready=len(self._ready),
            num_booting=self._num_booting,
            num_taken=len(self._taken),
            num_boot_failures=self._num_boot_failures,
        )

    async def _release(self) -> None:
        async with self._freed:
            self._num_held -= 1
            self._freed.notify()

    def _check_running(self) -> None:
        if self._keeper is None:
            raise EnvError("the environment cluster is not running: it was not started, or closed")

    async def _next_ready(self) -> Desktop | None:
        """The oldest spare that still answers; one that does not is replaced."""
        while self._ready:
            desktop = self._ready.popleft()
            client = GuestClient(desktop.address, what=f"the desktop {desktop.desktop_id}")
            try:
                await client.wait_ready(timeout_s=CHECK_S)
                return desktop
            except EnvError as error:
                log.warning("a spare desktop is replaced: %s", error)
                await self._end(desktop)
            finally:
                await client.close()
        return None

    async def _boot(self) -> Desktop:
        async with self._boots:
            self._num_booting += 1
            try:
                return await self._provider.create(self._new_id())
            except DartError:
                self._num_boot_failures += 1
                raise
            finally:
                self._num_booting -= 1

    async def _keep_spares(self) -> None:
        while True:
            self._wanted.clear()
            while len(self._ready) + len(self._tasks) < self._spares:
                task = asyncio.create_task(self._add_spare())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await self._wanted.wait()

    async def _add_spare(self) -> None:
        try:
            self._ready.append(await self._boot())
        except DartError as error:
            log.warning("a spare desktop did not boot: %s", error)
            await self._sleep(BACKOFF_S)
        finally:
            # After this task has left the count.
            asyncio.get_running_loop().call_soon(self._wanted.set)

    async def _end(self, desktop: Desktop) -> None:
        try:
            await self._provider.destroy(desktop.desktop_id)
        except DartError as error:
            log.warning("a desktop did not end: %s", error)
