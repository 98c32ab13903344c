import asyncio

import pytest

from dart_gui.errors import EnvError, SetupError
from dart_gui.runner.clock import within
from dart_gui.runner.fakes import ManualClock, settle
from dart_gui.runner.main import START_S, _found


class Work:
    """Waits until it is told; says how it ended."""

    def __init__(self):
        self.go = asyncio.Event()
        self.ended = ""

    async def run(self):
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        self.ended = "done"
        return 42


async def test_in_time():
    clock, work = ManualClock(), Work()
    running = asyncio.create_task(within(5.0, work.run(), clock))
    await clock.advance(4.9)
    work.go.set()
    assert await running == 42


async def test_too_late_ends_the_work_first():
    clock, work = ManualClock(), Work()
    running = asyncio.create_task(within(5.0, work.run(), clock))
    await clock.advance(5.0)
    assert work.ended == "cancelled"
    with pytest.raises(TimeoutError, match="5 s"):
        await running


async def test_cancelling_it_cancels_the_work():
    work = Work()
    running = asyncio.create_task(within(5.0, work.run(), ManualClock()))
    await settle()
    running.cancel()
    await settle()
    assert running.cancelled()
    assert work.ended == "cancelled"


async def test_errors_of_the_work_pass():
    async def broken():
        raise EnvError("broken")

    with pytest.raises(EnvError):
        await within(5.0, broken(), ManualClock())


async def test_the_service_is_waited_for():
    clock, place = ManualClock(), []
    finding = asyncio.create_task(
        _found(lambda: place[0] if place else None, asyncio.Event(), clock)
    )
    await clock.advance(10.0)
    assert not finding.done()
    place.append(("http://a", 1))
    await clock.advance(0.2)
    assert await finding is True


async def test_the_wait_for_the_service_can_be_stopped():
    clock, stop = ManualClock(), asyncio.Event()
    finding = asyncio.create_task(_found(lambda: None, stop, clock))
    await clock.advance(1.0)
    stop.set()
    await clock.advance(0.2)
    assert await finding is False


async def test_the_wait_for_the_service_has_an_end():
    clock = ManualClock()
    finding = asyncio.create_task(_found(lambda: None, asyncio.Event(), clock))
    await clock.advance(START_S + 1.0)
    with pytest.raises(SetupError, match=r"rollout\.log"):
        await finding
