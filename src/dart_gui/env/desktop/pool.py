"""A warm pool: desktops that are booted before they are wanted, each used once.

A desktop from the first moment to the last; it is forgotten when the provider has ended it:

BOOTING ---> READY ---> CHECKED ---> TAKEN ---> ENDING
   |           +-----------+------------------> ENDING   died, or does not answer
   +----------> TAKEN: no spare was there       ENDING   did not boot
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.providers.protocol import Desktop, Provider
from dart_gui.errors import DartError, EnvError, boundary

log = logging.getLogger(__name__)

MAX_BOOTS = 2
"""At once: more of them on a busy machine only make each one slow."""
MAX_ENDS = 4
"""At once: each may hold a thread for as long as a daemon does not answer."""
BACKOFF_S = 5.0
"""After a spare that did not boot, before the next one is tried, and after an end that failed."""
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


class DesktopState(StrEnum):
    BOOTING = "booting"
    READY = "ready"  # a spare
    CHECKED = "checked"  # a spare that is asked whether it still answers
    TAKEN = "taken"
    ENDING = "ending"  # until the provider has ended it, however often that is tried


TRANSITIONS: Mapping[DesktopState, frozenset[DesktopState]] = {
    DesktopState.BOOTING: frozenset({DesktopState.READY, DesktopState.TAKEN, DesktopState.ENDING}),
    DesktopState.READY: frozenset({DesktopState.CHECKED, DesktopState.ENDING}),
    DesktopState.CHECKED: frozenset({DesktopState.READY, DesktopState.TAKEN, DesktopState.ENDING}),
    DesktopState.TAKEN: frozenset({DesktopState.ENDING}),
    DesktopState.ENDING: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    num_ready: int  # booted, waiting to be taken
    num_booting: int
    num_taken: int
    num_ending: int  # given back, dead or nobody's, and not gone yet
    num_boot_failures: int  # since the start
    num_strays: int  # found running and nobody's, and ended, since the start


@dataclass(slots=True, eq=False)
class _Known:
    """A desktop and its place: one of the spares', or one of ``max_taken``."""

    desktop_id: str
    state: DesktopState
    is_spare: bool
    desktop: Desktop | None = None  # once it has booted
    end: asyncio.Task[None] | None = None
    end_tried: asyncio.Event = field(default_factory=asyncio.Event)

    def move(self, state: DesktopState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"a desktop does not go from {self.state} to {state}")
        self.state = state


class DesktopPool:
    """At most ``max_taken`` desktops in use, and ``spares`` more that wait for their turn.

    Every desktop that the provider makes for it is known here until the provider has ended it, and
    keeps its place until then. What else the provider finds is ended by ``tend``.
    """

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
        self._known: dict[str, _Known] = {}
        self._num_choosing = 0  # have a place of ``max_taken``, and no desktop yet
        self._boots = asyncio.Semaphore(MAX_BOOTS)
        self._ends = asyncio.Semaphore(MAX_ENDS)
        self._num_boot_failures = 0
        self._num_strays = 0
        self._freed = asyncio.Event()  # wakes all that wait for a place; each looks again
        self._wanted = asyncio.Event()  # the number of spares may be wrong
        self._keeper: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # one for each spare that is made

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
        while self._num_held() >= self._max_taken:
            self._freed.clear()
            await self._freed.wait()
            self._check_running()
        self._num_choosing += 1
        try:
            return await self._checked_spare() or await self._boot(is_spare=False)
        finally:
            self._num_choosing -= 1
            self._changed()

    def adopt(self, desktop: Desktop) -> None:
        """Count a desktop that was taken before this pool was, as after a restart."""
        self._known[desktop.desktop_id] = _Known(
            desktop.desktop_id, DesktopState.TAKEN, is_spare=False, desktop=desktop
        )

    def disown(self, desktops: Iterable[Desktop]) -> None:
        """Leave desktops that were taken as they are when the pool is closed."""
        for desktop in desktops:
            self._known.pop(desktop.desktop_id, None)

    def discard(self, desktop: Desktop) -> None:
        """Begin its end, of which nobody waits for the outcome."""
        known = self._known.get(desktop.desktop_id)
        if known is not None:
            self._start_end(known)

    async def give_back(self, desktop: Desktop) -> None:
        """Returns when it has ended, or the first try of it failed: others follow."""
        known = self._known.get(desktop.desktop_id)
        if known is not None:
            self._start_end(known)
            await known.end_tried.wait()

    async def tend(self) -> set[str]:
        """Compare with what the provider has: end spares that died, and what nobody here knows.

        Returns:
            The ids of the desktops that run. One that was taken before the call and is not among them
            ended on its own.

        Raises:
            EnvError: the provider does not say.
        """
        before = {known.desktop_id: known.state for known in self._known.values()}
        with boundary(EnvError, "looking for desktops"):
            found = await self._provider.find()
        running = {desktop.desktop_id for desktop in found if desktop.is_running}
        for known in list(self._known.values()):
            was_ready = before.get(known.desktop_id) is DesktopState.READY
            is_ready = known.state is DesktopState.READY
            if was_ready and is_ready and known.desktop_id not in running:
                log.warning("the spare desktop %s ended on its own", known.desktop_id)
                self._start_end(known)
        for desktop in found:
            if desktop.desktop_id not in before and desktop.desktop_id not in self._known:
                log.warning("the desktop %s is nobody's: it is ended", desktop.desktop_id)
                self._num_strays += desktop.is_running
                self.adopt(desktop)  # it takes a place until it is gone
                self.discard(desktop)
        return running

    async def close(self) -> None:
        """End every desktop that came from here, with one more try. Idempotent."""
        if self._keeper is None:
            return
        tasks = [self._keeper, *self._tasks]
        self._keeper = None
        await _cancel(tasks)
        await asyncio.gather(*map(self._last_end, self._known.values()))
        for known in self._known.values():
            known.end_tried.set()
        self._known.clear()
        self._changed()
        await self._provider.close()

    def stats(self) -> PoolStats:
        return PoolStats(
            num_ready=self._count(DesktopState.READY),
            num_booting=self._count(DesktopState.BOOTING),
            num_taken=self._count(DesktopState.TAKEN),
            num_ending=self._count(DesktopState.ENDING),
            num_boot_failures=self._num_boot_failures,
            num_strays=self._num_strays,
        )

    def _count(self, state: DesktopState) -> int:
        return sum(known.state is state for known in self._known.values())

    def _num_held(self) -> int:
        """Places of ``max_taken``. That of a desktop which boots is counted with who wants it."""
        held = (DesktopState.TAKEN, DesktopState.ENDING)
        taken = sum(k.state in held and not k.is_spare for k in self._known.values())
        return self._num_choosing + taken

    def _num_spares(self) -> int:
        """Places of spares. That of a desktop which boots is counted with the task that makes it."""
        made = sum(
            known.is_spare and known.state is not DesktopState.BOOTING
            for known in self._known.values()
        )
        return len(self._tasks) + made

    def _changed(self) -> None:
        self._freed.set()
        self._wanted.set()

    def _check_running(self) -> None:
        if self._keeper is None:
            raise EnvError("the environment cluster is not running: it was not started, or closed")

    async def _checked_spare(self) -> Desktop | None:
        """The oldest spare that still answers; one that does not is replaced."""
        while spare := self._oldest_ready():
            spare.move(DesktopState.CHECKED)
            try:
                desktop = await self._answering(spare)
            except BaseException:
                spare.move(DesktopState.READY)  # who wanted it went away
                raise
            # From here on nothing is awaited: a desktop that is taken has somebody who has it.
            if desktop is not None:
                spare.move(DesktopState.TAKEN)
                spare.is_spare = False
                return desktop
            self._start_end(spare)
        return None

    def _oldest_ready(self) -> _Known | None:
        ready = (known for known in self._known.values() if known.state is DesktopState.READY)
        return next(ready, None)

    async def _answering(self, known: _Known) -> Desktop | None:
        """None where it does not answer."""
        if known.desktop is None:
            return None
        client = GuestClient(known.desktop.address, what=f"the desktop {known.desktop_id}")
        try:
            await client.wait_ready(timeout_s=CHECK_S)
        except EnvError as error:
            log.warning("a spare desktop is replaced: %s", error)
            return None
        finally:
            await client.close()
        return known.desktop

    async def _boot(self, *, is_spare: bool) -> Desktop:
        """Ready as a spare, else taken. Raises ``DartError``, whatever the provider raises."""
        async with self._boots:
            known = _Known(self._new_id(), DesktopState.BOOTING, is_spare)
            self._known[known.desktop_id] = known
            try:
                with boundary(EnvError, f"booting the desktop {known.desktop_id}"):
                    desktop = await self._provider.create(known.desktop_id)
                self._check_running()
            except BaseException as error:
                self._num_boot_failures += isinstance(error, DartError)
                self._start_end(known)  # to clear up after itself may have failed too
                raise
        known.desktop = desktop
        known.move(DesktopState.READY if is_spare else DesktopState.TAKEN)
        return desktop

    async def _keep_spares(self) -> None:
        while True:
            self._wanted.clear()
            while self._num_spares() < self._spares:
                task = asyncio.create_task(self._add_spare())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await self._wanted.wait()

    async def _add_spare(self) -> None:
        try:
            await self._boot(is_spare=True)
        except DartError as error:
            log.warning("a spare desktop did not boot: %s", error)
            await self._sleep(BACKOFF_S)
        finally:
            # After this task has left the count.
            asyncio.get_running_loop().call_soon(self._wanted.set)

    def _start_end(self, known: _Known) -> None:
        if known.state is not DesktopState.ENDING:
            known.move(DesktopState.ENDING)
            known.end = asyncio.create_task(self._end(known))

    async def _end(self, known: _Known) -> None:
        """Until it is gone, or the pool is closed."""
        while not await self._destroyed(known.desktop_id) and self._keeper is not None:
            known.end_tried.set()
            await self._sleep(BACKOFF_S)
        self._known.pop(known.desktop_id, None)
        known.end_tried.set()
        self._changed()

    async def _last_end(self, known: _Known) -> None:
        if known.end is None:
            await self._destroyed(known.desktop_id)
        elif not known.end_tried.is_set():
            await known.end
        else:  # it failed, and waits for its next try
            await _cancel([known.end])
            await self._destroyed(known.desktop_id)

    async def _destroyed(self, desktop_id: str) -> bool:
        try:
            async with self._ends:
                with boundary(EnvError, f"ending the desktop {desktop_id}"):
                    await self._provider.destroy(desktop_id)
        except DartError as error:
            log.warning("a desktop did not end: %s", error)
            return False
        return True


async def _cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    pending = list(tasks)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
