"""Workers that do not answer, or are short of KV cache."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_gui.rollout.health import MAX_FAILURES, HealthMonitor, next_limit
from dart_gui.rollout.states import WorkerSlot, WorkerState
from dart_gui.rollout.worker_process import WorkerGoneError


class Process:
    """Answers as it is told."""


class Bench:
    def __init__(self, count=2, interval_s=3600.0):
        self.slots = [
            WorkerSlot(worker_id=f"w{index}", state=WorkerState.READY) for index in range(count)
        ]
        self.processes = {slot.worker_id: Process() for slot in self.slots}
        self.failed = []
        for process in self.processes.values():
            self.answer(process, None)
        self.monitor = HealthMonitor(self, capacity=16, interval_s=interval_s)

    def answer(self, process, error):
        async def look():
            if error == "never":
                await asyncio.Event().wait()
            elif error:
                raise WorkerGoneError(error)

        process.look = look

    def process(self, slot):
        return self.processes[slot.worker_id]

    def fail(self, process, reason):
        self.failed.append((process, reason))


async def test_three_failures_in_a_row_end_a_process():
    bench = Bench()
    sick = bench.processes["w0"]
    bench.answer(sick, "connection refused")
    for _ in range(MAX_FAILURES - 1):
        await bench.monitor.check_all()
    bench.answer(sick, None)
    await bench.monitor.check_all()
    bench.answer(sick, "connection refused")
    for _ in range(MAX_FAILURES - 1):
        await bench.monitor.check_all()
    assert bench.failed == []
    await bench.monitor.check_all()
    assert bench.failed == [(sick, "3 times in a row: connection refused")]


async def test_no_answer_is_a_failure_that_delays_no_other_check():
    bench = Bench(interval_s=0.01)
    bench.answer(bench.processes["w0"], "never")
    for _ in range(MAX_FAILURES):
        await bench.monitor.check_all()
    ((process, reason),) = bench.failed
    assert process is bench.processes["w0"]
    assert "no answer to a health check" in reason


@pytest.mark.parametrize("state", [WorkerState.STARTING, WorkerState.LOADING, WorkerState.DEAD])
async def test_a_worker_that_cannot_answer_is_not_asked(state):
    bench = Bench(1)
    bench.answer(bench.processes["w0"], "refused")
    bench.slots[0].state = state
    for _ in range(2 * MAX_FAILURES):
        await bench.monitor.check_all()
    assert bench.failed == []


async def test_a_new_process_starts_without_the_failures_of_the_old_one():
    bench = Bench(1)
    bench.answer(bench.processes["w0"], "refused")
    for _ in range(MAX_FAILURES - 1):
        await bench.monitor.check_all()
    bench.processes["w0"] = Process()
    bench.answer(bench.processes["w0"], "refused")
    await bench.monitor.check_all()
    assert bench.failed == []


async def test_the_limit_follows_the_pressure_and_wakes_the_router():
    bench = Bench(1)
    (slot,) = bench.slots
    told = []
    slot.listeners.append(lambda: told.append(slot.max_in_flight))
    for pressure in (0.5, 0.99, 0.97, 0.9, 0.1, 0.1):
        slot.kv_pressure = pressure
        await bench.monitor.check_all()
    assert told == [16, 12, 9, 10, 11]


@given(st.integers(1, 64), st.floats(0, 1), st.integers(1, 64))
def test_the_limit_stays_within_bounds(limit, pressure, capacity):
    after = next_limit(min(limit, capacity), pressure, capacity=capacity)
    assert 1 <= after <= capacity
