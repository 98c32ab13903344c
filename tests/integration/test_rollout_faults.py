"""Workers that answer nonsense, and checkpoints that are no good, under load; real processes.

Deaths, stalls and restarts are in test_rollout_update and test_rollout_process."""

import asyncio

import pytest

from dart_gui.errors import PolicyError
from dart_gui.rollout.client import RolloutClient
from dart_gui.rollout.service import serve
from dart_gui.rollout.worker_process import WorkerAnswer
from dart_gui.types import WeightsRef
from tests.fake_rollout import TOKEN, ask, config, folder


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_worker_that_answers_nonsense_is_given_up_and_its_requests_answered(tmp_path):
    """Garbled on its way from the one worker's real process; the process that follows is well."""
    model = folder(tmp_path / "model", latency_s=0.02)
    async with (
        serve(config(model), token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=60) as client,
    ):
        slots = service.fleet.slots
        nonsense = [WorkerAnswer(200, b"<html>", 0), WorkerAnswer(200, b'{"id":"x"}', 7)]

        async def garbled(request, images, *, abortable):
            await asyncio.sleep(0)
            nonsense.reverse()
            return nonsense[0]

        service.fleet.process(slots[0]).generate = garbled
        answers = await asyncio.gather(*(ask(client, number) for number in range(24)))
        assert [answer.sampling.seed for answer in answers] == list(range(24))
        await until(lambda: slots[0].restarts == 1 and slots[0].state == "ready")
        assert slots[1].restarts == 0
        again = await asyncio.gather(*(ask(client, number) for number in range(24)))
        assert {answer.worker_id for answer in again} == {"worker-0", "worker-1"}


async def test_nonsense_from_every_worker_is_one_clear_error(tmp_path):
    model = folder(tmp_path / "model", fault="lengths")
    async with (
        serve(config(model, num_workers=1), token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=60) as client,
    ):
        with pytest.raises(PolicyError, match="502: no answer after 3 tries"):
            await ask(client, 1)
        assert service.fleet.slots[0].restarts == 0  # it may be the request's fault


@pytest.mark.parametrize("kind", ["missing", "a file", "not a script"])
async def test_a_checkpoint_that_is_no_good_costs_no_request(tmp_path, kind):
    model = folder(tmp_path / "model", latency_s=0.02)
    bad = tmp_path / "bad"
    if kind == "a file":
        bad.write_text("weights")
    elif kind == "not a script":
        bad.mkdir()
        (bad / "fake_engine.json").write_text('{"replies": ')
    async with (
        serve(config(model), token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=60) as client,
    ):
        stop, answers = asyncio.Event(), []

        async def episode(first):
            number = first
            while not stop.is_set():
                answers.append(await ask(client, number))
                number += 100

        episodes = [asyncio.create_task(episode(first)) for first in range(8)]
        await client.publish(WeightsRef(policy_version=1, path=str(bad)))
        await until(lambda: service.fleet.update_error is not None)
        count = len(answers)
        await until(lambda: len(answers) > count + 8)
        stop.set()
        await asyncio.gather(*episodes)
        assert {answer.policy_version for answer in answers} == {0}
        assert [slot.restarts for slot in service.fleet.slots] == [0, 0]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (WorkerAnswer(200, b'{"id":"x"}', 3), ""),
        (WorkerAnswer(400, b"{}", None), ""),
        (WorkerAnswer(200, b'{"id":"x"}', 2), "version 2 instead of 3"),
        (WorkerAnswer(200, b'{"id":"x"}', None), "version None"),
        (WorkerAnswer(200, b"<html>", 3), "something else"),
        (WorkerAnswer(200, b'{"id":"cut o', 3), "something else"),
        (WorkerAnswer(500, b'{"error":{"message":"boom"}}', None), "boom"),
        (WorkerAnswer(502, b"\xff", None), "HTTP 502"),
    ],
)
def test_what_is_no_answer(answer, fault):
    found = answer.fault(3)
    assert bool(found) == bool(fault)
    assert fault in found
