"""Looks after the workers: a process that lives but does not answer is given up, and a worker short
of KV cache gets fewer requests at once until it is not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from dart_gui.rollout.fleet import Fleet
from dart_gui.rollout.states import WorkerSlot, WorkerState
from dart_gui.rollout.worker_process import WorkerGoneError, WorkerProcess

log = logging.getLogger(__name__)
MAX_FAILURES = 3
HIGH_PRESSURE = 0.95  # beyond it vLLM throws requests out and computes them again
LOW_PRESSURE = 0.8
_WATCHED = (WorkerState.READY, WorkerState.DRAINING)


def next_limit(limit: int, pressure: float, *, capacity: int) -> int:
    """Requests at once for a worker whose KV cache is used to ``pressure``: down by a quarter where it
    is short, up by one where it has room, as a congestion window.

    >>> next_limit(16, 0.99, capacity=16), next_limit(12, 0.5, capacity=16)
    (12, 13)
    """
    if pressure > HIGH_PRESSURE:
        return max(1, limit - max(1, limit // 4))
    if pressure < LOW_PRESSURE:
        return min(capacity, limit + 1)
    return limit


class HealthMonitor:
    """One loop over all workers, every ``interval_s``; a check has as long to be answered."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        capacity: int,
        interval_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._fleet = fleet
        self._capacity = capacity
        self._interval_s = interval_s
        self._sleep = sleep
        self._failures: dict[WorkerProcess, int] = {}

    async def run(self) -> None:
        while True:
            await self._sleep(self._interval_s)
            await self.check_all()

    async def check_all(self) -> None:
        watched = [slot for slot in self._fleet.slots if slot.state in _WATCHED]
        await asyncio.gather(*(self._check(slot) for slot in watched))
        current = {self._fleet.process(slot) for slot in watched}
        self._failures = {p: n for p, n in self._failures.items() if p in current}

    async def _check(self, slot: WorkerSlot) -> None:
        process = self._fleet.process(slot)
        try:
            async with asyncio.timeout(self._interval_s):
                await process.look()
        except TimeoutError:
            self._count(process, f"no answer to a health check for {self._interval_s:g} s")
            return
        except WorkerGoneError as error:
            self._count(process, str(error))
            return
        self._failures.pop(process, None)
        limit = next_limit(
            min(slot.max_in_flight or self._capacity, self._capacity),
            slot.kv_pressure,
            capacity=self._capacity,
        )
        if limit != slot.max_in_flight:
            slot.max_in_flight = limit
            slot.notify()

    def _count(self, process: WorkerProcess, reason: str) -> None:
        self._failures[process] = self._failures.get(process, 0) + 1
        if self._failures[process] >= MAX_FAILURES:
            self._fleet.fail(process, f"{MAX_FAILURES} times in a row: {reason}")
