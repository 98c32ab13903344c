"""Which worker answers which request: sticky by trajectory, least loaded otherwise, in the order of
arrival, never a worker that is not READY.

A worker takes a little more than it decodes at once, so that it never waits for the next request;
the rest queues here, where it can still go to any worker and does not delay an update.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from dart_gui.errors import PolicyError
from dart_gui.rollout.states import WorkerSlot, WorkerState

_MAX_STICKY = 10_000


class QueueTimeoutError(PolicyError):
    """No worker took the request in time."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    trajectory_id: str
    future: asyncio.Future[WorkerSlot]


class Router:
    """Hands out places at workers. ``capacity`` bounds the requests at one worker."""

    def __init__(self, slots: Sequence[WorkerSlot], *, capacity: int) -> None:
        self._slots = slots
        self._capacity = capacity
        self._queue: deque[_Waiter] = deque()
        self._sticky: OrderedDict[str, WorkerSlot] = OrderedDict()
        for slot in slots:
            slot.listeners.append(self._match)

    @property
    def queue_size(self) -> int:
        return len(self._queue)

    async def acquire(self, trajectory_id: str, *, timeout_s: float) -> WorkerSlot:
        """A place at a worker, to be given back by :meth:`release`.

        Raises:
            QueueTimeoutError: none became free within ``timeout_s``.
        """
        waiter = _Waiter(trajectory_id, asyncio.get_running_loop().create_future())
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
        for listener in slot.listeners:
            listener()

    def _withdraw(self, waiter: _Waiter) -> None:
        """The place may have been granted in the same turn of the event loop as the time-out."""
        if waiter in self._queue:
            self._queue.remove(waiter)
        elif waiter.future.done() and not waiter.future.cancelled():
            self.release(waiter.future.result())

    def _match(self) -> None:
        while self._queue:
            slot = self._choose(self._queue[0].trajectory_id)
            if slot is None:
                return
            waiter = self._queue.popleft()
            if waiter.future.done():  # cancelled; its owner is about to withdraw it
                continue
            slot.num_in_flight += 1
            self._remember(waiter.trajectory_id, slot)
            waiter.future.set_result(slot)

    def _choose(self, trajectory_id: str) -> WorkerSlot | None:
        """A full sticky worker does not hold its trajectory back while another one has room."""
        free = [
            slot
            for slot in self._slots
            if slot.state is WorkerState.READY and slot.num_in_flight < self._capacity
        ]
        sticky = self._sticky.get(trajectory_id)
        if sticky in free:
            return sticky
        return min(free, key=lambda slot: (slot.num_in_flight, slot.num_completed), default=None)

    def _remember(self, trajectory_id: str, slot: WorkerSlot) -> None:
        if not trajectory_id:
            return
        self._sticky[trajectory_id] = slot
        self._sticky.move_to_end(trajectory_id)
        if len(self._sticky) > _MAX_STICKY:
            self._sticky.popitem(last=False)
