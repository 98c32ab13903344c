"""Which worker answers which request: sticky by trajectory unless that worker is hot, least loaded
otherwise, in the order of arrival, never a worker that is not READY.

A worker takes a little more than it decodes at once, so that it never waits for the next request;
the rest queues here, where it can still go to any worker and does not delay an update.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from dart_gui.errors import PolicyError
from dart_gui.rollout.states import WorkerSlot, WorkerState

_MAX_STICKY = 10_000
_RATE_SAMPLES = 64
_MAX_RETRY_AFTER_S = 30.0


class QueueFullError(PolicyError):
    """Too many requests wait already; ``retry_after_s`` is when there should be room."""

    def __init__(self, text: str, retry_after_s: float) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class QueueTimeoutError(PolicyError):
    """No worker took the request in time."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    trajectory_id: str
    avoid: Collection[WorkerSlot]
    future: asyncio.Future[WorkerSlot]


class Router:
    """Hands out places at workers. ``capacity`` bounds the requests at one worker, ``max_queue`` those
    that wait (None for no bound). A trajectory leaves its worker when that has more than
    ``max_imbalance`` requests more than the least loaded one: its prefix is computed anew, which costs
    less than the queue."""

    def __init__(
        self,
        slots: Sequence[WorkerSlot],
        *,
        capacity: int,
        max_queue: int | None = None,
        max_imbalance: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots = slots
        self._capacity = capacity
        self._max_queue = max_queue
        self._max_imbalance = max_imbalance
        self._clock = clock
        self._released_at: deque[float] = deque(maxlen=_RATE_SAMPLES)
        self.routes: Counter[str] = Counter()  # by how the worker was chosen
        self._queue: deque[_Waiter] = deque()
        self._sticky: OrderedDict[str, WorkerSlot] = OrderedDict()
        for slot in slots:
            slot.listeners.append(self._match)

    @property
    def queue_size(self) -> int:
        return len(self._queue)

    async def acquire(
        self,
        trajectory_id: str,
        *,
        timeout_s: float,
        avoid: Collection[WorkerSlot] = (),
        again: bool = False,
    ) -> WorkerSlot:
        """A place at a worker, to be given back by :meth:`release`; at one of ``avoid`` only where no
        other one has room. A request that had a place before and lost it comes ``again``: before
        those that wait, however many they are.

        Raises:
            QueueFullError: too many wait already.
            QueueTimeoutError: none became free within ``timeout_s``.
        """
        if not again and self._max_queue is not None and len(self._queue) >= self._max_queue:
            retry_after_s = self._retry_after_s()
            raise QueueFullError(
                f"{len(self._queue)} requests wait already (rollout.max_queue): try again in "
                f"{retry_after_s:.0f} s",
                retry_after_s,
            )
        waiter = _Waiter(trajectory_id, avoid, asyncio.get_running_loop().create_future())
        if again:
            self._queue.appendleft(waiter)
        else:
            self._queue.append(waiter)
        self._match()
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter.future
        except TimeoutError:
            self._withdraw(waiter)
            raise QueueTimeoutError(f"no worker was free for {timeout_s:.1f} s") from None
        except asyncio.CancelledError:
            self._withdraw(waiter)
            raise

    def release(self, slot: WorkerSlot) -> None:
        slot.num_in_flight -= 1
        self._released_at.append(self._clock())
        slot.notify()

    def _retry_after_s(self) -> float:
        """Time in which as many requests end as wait now, at the rate of the last ones."""
        if len(self._released_at) < 2:
            return 1.0
        rate = (len(self._released_at) - 1) / max(self._clock() - self._released_at[0], 1e-3)
        return min(_MAX_RETRY_AFTER_S, max(1.0, len(self._queue) / rate))

    def _withdraw(self, waiter: _Waiter) -> None:
        """The place may have been granted in the same turn of the event loop as the time-out."""
        if waiter in self._queue:
            self._queue.remove(waiter)
        elif waiter.future.done() and not waiter.future.cancelled():
            self.release(waiter.future.result())

    def _match(self) -> None:
        while self._queue:
            slot = self._choose(self._queue[0])
            if slot is None:
                return
            waiter = self._queue.popleft()
            if waiter.future.done():  # cancelled; its owner is about to withdraw it
                continue
            slot.num_in_flight += 1
            self._count(waiter.trajectory_id, slot)
            self._remember(waiter.trajectory_id, slot)
            waiter.future.set_result(slot)

    def _choose(self, waiter: _Waiter) -> WorkerSlot | None:
        """A full sticky worker does not hold its trajectory back while another one has room."""
        free = [slot for slot in self._slots if self._has_room(slot)]
        free = [slot for slot in free if slot not in waiter.avoid] or free
        least = min(free, key=lambda slot: (slot.num_in_flight, slot.num_completed), default=None)
        sticky = self._sticky.get(waiter.trajectory_id)
        if least is None or sticky is None:
            return least
        hot = sticky.num_in_flight > least.num_in_flight + self._max_imbalance
        return sticky if sticky in free and not hot else least

    def _has_room(self, slot: WorkerSlot) -> bool:
        limit = self._capacity
        if slot.max_in_flight is not None:
            limit = min(limit, slot.max_in_flight)
        return slot.state is WorkerState.READY and slot.num_in_flight < limit

    def _count(self, trajectory_id: str, slot: WorkerSlot) -> None:
        sticky = self._sticky.get(trajectory_id)
        kind = "new" if sticky is None else "sticky" if sticky is slot else "moved"
        self.routes[kind] += 1

    def _remember(self, trajectory_id: str, slot: WorkerSlot) -> None:
        if not trajectory_id:
            return
        self._sticky[trajectory_id] = slot
        self._sticky.move_to_end(trajectory_id)
        if len(self._sticky) > _MAX_STICKY:
            self._sticky.popitem(last=False)
