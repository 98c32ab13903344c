"""Time, injected: a wait in the runner goes through a :class:`Clock`, so that a test decides it.

What o'clock it is and how long something took are two questions: the machine's clock may be set, so
durations, deadlines and rates are of ``monotonic`` alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Clock(Protocol):
    def now(self) -> float:
        """Unix seconds: for records. May jump."""

    def monotonic(self) -> float:
        """Seconds since some moment: for durations. Never goes back."""

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's own time."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def within(seconds: float, work: Coroutine[Any, Any, T], clock: Clock) -> T:
    """What ``work`` returns, if it does so in time; else ``work`` is cancelled, and ended, first.

    Raises:
        TimeoutError: ``seconds`` of ``clock`` have passed.
    """
    task = asyncio.create_task(work)
    alarm = asyncio.create_task(clock.sleep(seconds))
    try:
        await asyncio.wait([task, alarm], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise TimeoutError(f"not done within {seconds:g} s")
        return task.result()
    finally:
        # Both are ended before we return: a half-cancelled episode would still hold its page.
        for each in (task, alarm):
            each.cancel()
        await asyncio.gather(task, alarm, return_exceptions=True)
