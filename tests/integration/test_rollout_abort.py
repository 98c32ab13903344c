"""Updates that take the requests from their workers (rollout.update_mode = "abort"); real processes,
fake engine."""

import asyncio

from dart_gui.rollout.client import RolloutClient
from dart_gui.rollout.service import serve
from dart_gui.types import WeightsRef
from tests.fake_rollout import TOKEN, ask, config, folder

WAIT_S = 120
FOREVER_S = 3600.0


def aborting(model_path, **rollout):
    settings = {"request_timeout_s": WAIT_S, "update_mode": "abort"}
    return config(model_path, **settings | rollout)


async def until(condition):
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


def assert_whole(completion):
    version = completion.policy_version
    assert completion.text.startswith(f"Thought: versions {version} to {version}.\n")


async def test_an_update_does_not_wait_for_replies_that_would_never_end(tmp_path):
    slow = folder(tmp_path / "model", latency_s=FOREVER_S)
    quick = WeightsRef(policy_version=1, path=folder(tmp_path / "v1", latency_s=0.01))
    async with (
        serve(aborting(slow, num_workers=2), token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=WAIT_S) as client,
    ):
        slots = service.fleet.slots
        asked = [asyncio.create_task(ask(client, number)) for number in range(8)]
        await until(lambda: sum(slot.num_in_flight for slot in slots) == 8)
        await client.publish(quick)
        answers = await asyncio.gather(*asked)
        assert [answer.sampling.seed for answer in answers] == list(range(8))
        assert [answer.policy_version for answer in answers] == [1] * 8
        await until(lambda: [slot.policy_version for slot in slots] == [1, 1])
        assert [slot.restarts for slot in slots] == [0, 0]
        assert sum(slot.num_completed for slot in slots) == 8
    for answer in answers:
        assert_whole(answer)


async def test_a_lone_worker_answers_after_its_load(tmp_path):
    slow = folder(tmp_path / "model", latency_s=FOREVER_S)
    quick = WeightsRef(policy_version=1, path=folder(tmp_path / "v1", latency_s=0.01))
    async with (
        serve(aborting(slow, num_workers=1), token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=WAIT_S) as client,
    ):
        (slot,) = service.fleet.slots
        asked = asyncio.create_task(ask(client, 1))
        await until(lambda: slot.num_in_flight == 1)
        await client.publish(quick)
        answer = await asked
        assert (answer.policy_version, slot.restarts) == (1, 0)
    assert_whole(answer)


async def test_weights_that_are_refused_cost_the_aborted_requests_nothing_but_time(tmp_path):
    model = folder(tmp_path / "model", latency_s=0.2)
    async with (
        serve(aborting(model, num_workers=1), token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=WAIT_S) as client,
    ):
        (slot,) = service.fleet.slots
        asked = asyncio.create_task(ask(client, 1))
        await until(lambda: slot.num_in_flight == 1)
        await client.publish(WeightsRef(policy_version=1, path=str(tmp_path / "missing")))
        answer = await asked
        assert (answer.policy_version, slot.restarts) == (0, 0)
    assert_whole(answer)


async def test_updates_one_after_the_other_under_load_lose_nothing(tmp_path):
    last, num_workers = 5, 3
    model = folder(tmp_path / "model", latency_s=0.05)
    completions, stop = [], asyncio.Event()

    async def ask_on(client, number):
        while not stop.is_set():
            completions.append(await ask(client, number))
            number += 100

    async with (
        serve(aborting(model, num_workers=num_workers), token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=WAIT_S) as client,
    ):
        slots = service.fleet.slots
        clients = [asyncio.create_task(ask_on(client, number)) for number in range(12)]
        for version in range(1, last + 1):
            path = folder(tmp_path / f"v{version}", latency_s=0.05)
            await client.publish(WeightsRef(policy_version=version, path=path))
            await until(lambda v=version: all(slot.policy_version == v for slot in slots))
            num_before = len(completions)
            await until(lambda n=num_before: len(completions) > n + 3)
        stop.set()
        await asyncio.gather(*clients)
        assert [slot.restarts for slot in slots] == [0] * num_workers
        assert sum(slot.num_completed for slot in slots) == len(completions)
        assert [slot.num_in_flight for slot in slots] == [0] * num_workers
    seeds = {completion.sampling.seed for completion in completions}
    assert len(seeds) == len(completions)
    assert max(completion.policy_version for completion in completions) == last
    for completion in completions:
        assert_whole(completion)


async def test_a_caller_who_went_away_frees_the_engine(tmp_path):
    """Else a drained update would wait for an answer that nobody wants."""
    slow = folder(tmp_path / "model", latency_s=FOREVER_S)
    quick = WeightsRef(policy_version=1, path=folder(tmp_path / "v1", latency_s=0.01))
    drained = aborting(slow, num_workers=1, update_mode="drain")
    async with (
        serve(drained, token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=WAIT_S) as client,
        RolloutClient(service.url, TOKEN, timeout_s=2.0) as hasty,
    ):
        (slot,) = service.fleet.slots
        asked = asyncio.create_task(asyncio.wait_for(ask(hasty, 1), WAIT_S))
        await until(lambda: slot.num_in_flight == 1)
        (failure,) = await asyncio.gather(asked, return_exceptions=True)
        assert "no" in str(failure)
        await client.publish(quick)
        await until(lambda: slot.policy_version == 1)
        assert slot.restarts == 0
        assert (await ask(client, 2)).policy_version == 1
