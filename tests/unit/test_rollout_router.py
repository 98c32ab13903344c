import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_gui.rollout.router import QueueFullError, QueueTimeoutError, Router
from dart_gui.rollout.states import TRANSITIONS, WorkerSlot, WorkerState

NEVER_S = 3600.0


def ready_slots(count):
    return [WorkerSlot(worker_id=f"w{index}", state=WorkerState.READY) for index in range(count)]


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_least_loaded_worker_is_chosen():
    slots = ready_slots(2)
    router = Router(slots, capacity=4)
    chosen = [await router.acquire("", timeout_s=NEVER_S) for _ in range(4)]
    assert [slot.worker_id for slot in chosen] == ["w0", "w1", "w0", "w1"]


async def test_a_trajectory_stays_at_its_worker():
    slots = ready_slots(2)
    router = Router(slots, capacity=4)
    first = await router.acquire("t", timeout_s=NEVER_S)
    second = await router.acquire("t", timeout_s=NEVER_S)
    assert first is second


async def test_a_full_worker_does_not_hold_its_trajectory_back():
    slots = ready_slots(2)
    router = Router(slots, capacity=1)
    first = await router.acquire("t", timeout_s=NEVER_S)
    second = await router.acquire("t", timeout_s=NEVER_S)
    assert first is not second
    router.release(first)
    router.release(second)
    assert await router.acquire("t", timeout_s=NEVER_S) is second


@pytest.mark.parametrize("state", [state for state in WorkerState if state != WorkerState.READY])
async def test_no_request_goes_to_a_worker_that_is_not_ready(state):
    slots = ready_slots(2)
    slots[0].state = state
    router = Router(slots, capacity=2)
    chosen = [await router.acquire("t", timeout_s=NEVER_S) for _ in range(2)]
    assert chosen == [slots[1], slots[1]]


async def test_requests_wait_for_a_worker_and_are_served_in_order():
    (slot,) = ready_slots(1)
    slot.state = WorkerState.LOADING
    router = Router([slot], capacity=1)
    order = []

    async def request(name):
        order.append((name, await router.acquire(name, timeout_s=NEVER_S)))

    tasks = [asyncio.create_task(request(name)) for name in "ab"]
    await settle()
    assert (order, router.queue_size) == ([], 2)
    slot.move(WorkerState.READY)
    await settle()
    assert [name for name, _ in order] == ["a"]
    router.release(slot)
    await asyncio.gather(*tasks)
    assert [name for name, _ in order] == ["a", "b"]
    assert (slot.num_in_flight, router.queue_size) == (1, 0)


async def test_a_request_that_waits_too_long_leaves_the_queue():
    (slot,) = ready_slots(1)
    slot.state = WorkerState.DEAD
    router = Router([slot], capacity=1)
    with pytest.raises(QueueTimeoutError):
        await router.acquire("t", timeout_s=0)
    assert router.queue_size == 0


async def test_a_place_granted_to_a_cancelled_request_is_given_back():
    (slot,) = ready_slots(1)
    slot.state = WorkerState.LOADING
    router = Router([slot], capacity=1)
    task = asyncio.create_task(router.acquire("t", timeout_s=NEVER_S))
    await settle()
    slot.move(WorkerState.READY)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slot.num_in_flight == 0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["acquire", "release", "move"]), st.integers(0, 9))))
def test_whatever_happens_no_worker_is_overfull_and_no_place_is_lost(events):
    async def play():
        slots = ready_slots(3)
        router = Router(slots, capacity=2)
        tasks = []
        held = []
        for kind, number in events:
            if kind == "acquire":
                coroutine = router.acquire(f"t{number}", timeout_s=NEVER_S)
                tasks.append(asyncio.create_task(coroutine))
            elif kind == "release" and held:
                router.release(held.pop(number % len(held)))
            elif kind == "move":
                slot = slots[number % 3]
                targets = sorted(TRANSITIONS[slot.state])
                slot.move(targets[number % len(targets)])
            await settle()
            held += [task.result() for task in tasks if task.done()]
            tasks = [task for task in tasks if not task.done()]
            assert all(0 <= slot.num_in_flight <= 2 for slot in slots)
            assert sum(slot.num_in_flight for slot in slots) == len(held)
            assert router.queue_size == len(tasks)
            room = [s for s in slots if s.state is WorkerState.READY and s.num_in_flight < 2]
            assert not (tasks and room)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(play())


def test_a_worker_moves_by_its_table_only():
    slot = WorkerSlot(worker_id="w")
    path = ["starting", "ready", "draining", "loading", "ready", "dead", "starting", "dead"]
    for state in path:
        slot.move(WorkerState(state))
    with pytest.raises(ValueError, match="cannot go from dead to ready"):
        slot.move(WorkerState.READY)


def test_listeners_hear_of_each_move():
    heard = []
    slot = WorkerSlot(worker_id="w", listeners=[lambda: heard.append(slot.state)])
    slot.move(WorkerState.STARTING)
    slot.move(WorkerState.READY)
    assert heard == ["starting", "ready"]


async def test_a_trajectory_leaves_a_hot_worker_and_stays_away():
    slots = ready_slots(2)
    router = Router(slots, capacity=16, max_imbalance=2)
    home = await router.acquire("t", timeout_s=NEVER_S)
    router.release(home)
    home.num_in_flight = 2  # as many more as are allowed
    assert await router.acquire("t", timeout_s=NEVER_S) is home
    away = await router.acquire("t", timeout_s=NEVER_S)
    assert away is not home
    assert await router.acquire("t", timeout_s=NEVER_S) is away
    assert router.routes == {"new": 1, "sticky": 2, "moved": 1}


async def test_a_worker_short_of_cache_gets_no_more_than_its_limit():
    slots = ready_slots(1)
    router = Router(slots, capacity=8)
    slots[0].max_in_flight = 1
    await router.acquire("", timeout_s=NEVER_S)
    waiting = asyncio.create_task(router.acquire("", timeout_s=NEVER_S))
    await settle()
    assert not waiting.done()
    slots[0].max_in_flight = 2
    slots[0].notify()
    assert await waiting is slots[0]


async def test_a_full_queue_says_when_to_come_again():
    now = [100.0]
    (slot,) = ready_slots(1)
    router = Router([slot], capacity=1, max_queue=4, clock=lambda: now[0])
    for _ in range(5):  # one request every two seconds
        router.release(await router.acquire("", timeout_s=NEVER_S))
        now[0] += 2.0
    await router.acquire("", timeout_s=NEVER_S)
    waiting = [asyncio.create_task(router.acquire("", timeout_s=NEVER_S)) for _ in range(4)]
    await settle()
    with pytest.raises(QueueFullError) as caught:
        await router.acquire("", timeout_s=NEVER_S)
    assert caught.value.retry_after_s == pytest.approx(4 * 10 / 4)
    router.release(slot)
    await settle()
    assert router.queue_size == 3
    for task in waiting:
        task.cancel()


async def test_a_request_that_is_sent_again_goes_elsewhere_where_it_can():
    slots = ready_slots(2)
    router = Router(slots, capacity=4)
    home = await router.acquire("t", timeout_s=NEVER_S)
    other = await router.acquire("t", timeout_s=NEVER_S, avoid={home})
    assert other is not home
    home.state = WorkerState.DEAD
    assert await router.acquire("t", timeout_s=NEVER_S, avoid={home, other}) is other


async def test_who_lost_a_place_is_before_those_who_wait_however_many():
    (slot,) = ready_slots(1)
    router = Router([slot], capacity=1, max_queue=1)
    await router.acquire("a", timeout_s=NEVER_S)
    order = []

    async def request(name, again):
        await router.acquire(name, timeout_s=NEVER_S, again=again)
        order.append(name)

    tasks = [asyncio.create_task(request(*each)) for each in (("waits", False), ("again", True))]
    await settle()
    with pytest.raises(QueueFullError):
        await router.acquire("new", timeout_s=NEVER_S)
    router.release(slot)
    await settle()
    router.release(slot)
    await asyncio.gather(*tasks)
    assert order == ["again", "waits"]
