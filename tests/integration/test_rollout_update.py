"""Weights that change and workers that die while requests arrive; real processes, fake engine."""

import asyncio
import os
import signal

import aiohttp
import pytest

from dart_gui.errors import PolicyError
from dart_gui.rollout.client import RolloutClient
from dart_gui.rollout.service import serve
from dart_gui.rollout.states import WorkerState
from dart_gui.types import WeightsRef
from tests.fake_rollout import TOKEN, ask, config, folder


async def until(condition):
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.01)


def serves(client, version):
    async def condition():
        status = await client.status()
        return all(worker.policy_version == version for worker in status.workers)

    return condition


class Watch:
    """Looks at the fleet at every change of any worker's state, so no moment is missed."""

    def __init__(self, slots):
        self._slots = slots
        self.num_serving = []
        self.versions = []  # those in service, a set a look
        for slot in slots:
            slot.listeners.append(self._look)

    def _look(self):
        states = [slot.state for slot in self._slots]
        self.num_serving.append(states.count(WorkerState.READY))
        answering = (WorkerState.READY, WorkerState.DRAINING)
        self.versions.append(
            {slot.policy_version for slot in self._slots if slot.state in answering}
        )

    @property
    def skew(self):
        return max(max(versions) - min(versions) for versions in self.versions if versions)


class Answers:
    """The versions of each worker's answers, in the order in which they come to the service. Beyond
    it two answers on their way to their callers may overtake each other."""

    def __init__(self, fleet):
        self.versions = {}
        for slot in fleet.slots:
            self._listen(fleet.process(slot), self.versions.setdefault(slot.worker_id, []))

    def _listen(self, process, versions):
        generate = process.generate

        async def heard(*args, **kwargs):
            answer = await generate(*args, **kwargs)
            versions.append(answer.policy_version)
            return answer

        process.generate = heard

    def assert_no_worker_went_back(self):
        for worker_id, versions in self.versions.items():
            assert versions == sorted(versions), f"{worker_id} went back"
            assert versions, f"{worker_id} answered nothing"


class Load:
    """Clients that ask without a pause, until the context ends."""

    def __init__(self, client, num_clients):
        self.completions = []
        self._client = client
        self._num_clients = num_clients
        self._stop = asyncio.Event()

    async def __aenter__(self):
        self._tasks = [
            asyncio.create_task(self._ask_on(first)) for first in range(self._num_clients)
        ]
        return self

    async def __aexit__(self, *_):
        self._stop.set()
        await asyncio.gather(*self._tasks)  # raises where a single request failed

    async def _ask_on(self, number):
        while not self._stop.is_set():
            self.completions.append(await ask(self._client, number))
            number += 100

    def answered(self, version):
        async def condition():
            return any(each.policy_version == version for each in self.completions)

        return condition


def assert_no_version_mixed(completions):
    for completion in completions:
        version = completion.policy_version
        assert completion.text.startswith(f"Thought: versions {version} to {version}.\n")


@pytest.mark.parametrize("num_workers", [1, 2, 4])
async def test_updates_under_load_lose_no_request_and_mix_no_versions(tmp_path, num_workers):
    script = {"latency_s": 0.03}
    model = folder(tmp_path / "model", **script)
    async with (
        serve(config(model, num_workers=num_workers), token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=30) as client,
    ):
        watch, answers = Watch(service.fleet.slots), Answers(service.fleet)
        async with Load(client, 6 * num_workers) as load:
            await until(load.answered(0))
            for version in range(1, 5):
                path = folder(tmp_path / f"v{version}", **script)
                await client.publish(WeightsRef(policy_version=version, path=path))
                await until(serves(client, version))
                await until(load.answered(version))
        status = await client.status()
        assert sum(worker.num_completed for worker in status.workers) == len(load.completions)
        assert [worker.restarts for worker in status.workers] == [0] * num_workers
        assert min(watch.num_serving) == num_workers - 1
        assert watch.skew <= 1
    assert_no_version_mixed(load.completions)
    answers.assert_no_worker_went_back()
    assert {completion.policy_version for completion in load.completions} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("num_workers", [2, 4])
async def test_a_trainer_that_publishes_faster_than_workers_load_does_not_spread_them(
    tmp_path, num_workers
):
    script = {"latency_s": 0.03}
    model = folder(tmp_path / "model", **script)
    last = 25
    paths = [folder(tmp_path / f"v{version}", **script) for version in range(last + 1)]
    async with (
        serve(config(model, num_workers=num_workers), token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=30) as client,
    ):
        watch, answers = Watch(service.fleet.slots), Answers(service.fleet)
        async with Load(client, 6 * num_workers) as load:
            for version in range(1, last + 1):
                await client.publish(WeightsRef(policy_version=version, path=paths[version]))
                count = len(load.completions)
                await until(more_than(load.completions, count))
            await until(serves(client, last))
        assert min(watch.num_serving) == num_workers - 1
        assert max(map(len, watch.versions)) == 2, "at most two versions in service"
        assert len(set().union(*watch.versions)) > 3, "updates went on while versions came"
        assert [slot.restarts for slot in service.fleet.slots] == [0] * num_workers
    assert_no_version_mixed(load.completions)
    answers.assert_no_worker_went_back()


def more_than(items, count):
    async def condition():
        return len(items) > count

    return condition


async def test_a_request_survives_the_death_of_its_worker(tmp_path):
    model = folder(tmp_path / "model", latency_s=0.5)
    async with (
        serve(config(model), token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=30) as client,
    ):
        requests = [asyncio.create_task(ask(client, number)) for number in range(8)]
        victim = service.fleet.slots[0]

        async def busy():
            return victim.num_in_flight > 0

        await until(busy)
        os.kill(service.fleet.process(victim).pid, signal.SIGKILL)
        answers = await asyncio.gather(*requests)
        assert [answer.sampling.seed for answer in answers] == list(range(8))

        async def back():
            status = await client.status()
            return [worker.state for worker in status.workers] == ["ready", "ready"]

        await until(back)
        assert [slot.restarts for slot in service.fleet.slots] == [1, 0]


async def test_a_lone_worker_that_dies_comes_back_with_the_newest_weights(tmp_path):
    model = folder(tmp_path / "model", latency_s=0.3)
    newest = WeightsRef(policy_version=7, path=folder(tmp_path / "v7"))
    async with (
        serve(config(model, num_workers=1), token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=30) as client,
    ):
        await client.publish(newest)
        await until(serves(client, 7))
        os.kill(service.fleet.process(service.fleet.slots[0]).pid, signal.SIGKILL)
        assert (await ask(client, 1)).policy_version == 7


async def test_weights_that_cannot_be_loaded_leave_the_old_ones_in_service(tmp_path):
    model = folder(tmp_path / "model")
    async with (
        serve(config(model), token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=30) as client,
    ):
        await client.publish(WeightsRef(policy_version=1, path=str(tmp_path / "missing")))

        async def reported():
            return (await client.status()).update_error is not None

        await until(reported)
        status = await client.status()
        assert "are not a folder" in (status.update_error or "")
        assert (status.min_version, status.desired_version) == (0, 1)
        assert (await ask(client, 1)).policy_version == 0
        await client.publish(WeightsRef(policy_version=2, path=folder(tmp_path / "v2")))
        await until(serves(client, 2))
        assert (await client.status()).update_error is None


async def update_job(http, update_id):
    async with http.get(f"/updates/{update_id}") as response:
        return response.status, await response.json()


async def test_an_update_is_a_job_that_can_be_watched(tmp_path):
    model = folder(tmp_path / "model")
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        serve(config(model), token=TOKEN) as service,
        aiohttp.ClientSession(service.url, headers=headers) as http,
    ):
        weights = {"policy_version": 1, "path": folder(tmp_path / "v1")}
        async with http.post("/weights", json=weights) as response:
            update_id = (await response.json())["update_id"]

        async def done():
            return (await update_job(http, update_id))[1]["state"] == "done"

        await until(done)
        _, job = await update_job(http, update_id)
        assert job["weights"] == weights
        assert [worker["policy_version"] for worker in job["workers"]] == [1, 1]
        assert job["ended_at"] >= job["created_at"]
        async with http.post("/weights", json=weights) as response:
            assert "update_id" not in await response.json()

        bad = {"policy_version": 2, "path": str(tmp_path / "missing")}
        async with http.post("/weights", json=bad) as response:
            update_id = (await response.json())["update_id"]

        async def failed():
            return (await update_job(http, update_id))[1]["state"] == "failed"

        await until(failed)
        assert "are not a folder" in (await update_job(http, update_id))[1]["error"]
        assert (await update_job(http, "update-77"))[0] == 404
        async with http.get("/updates") as response:
            states = [job["state"] for job in (await response.json())["updates"]]
        assert states == ["done", "failed"]


async def test_a_worker_that_hangs_is_replaced(tmp_path):
    model = folder(tmp_path / "model", latency_s=3600)
    hanging = config(model, num_workers=1, request_timeout_s=0.5)
    async with (
        serve(hanging, token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=30) as client,
    ):
        with pytest.raises(PolicyError, match="no answer within"):
            await ask(client, 1)

        async def replaced():
            return (await client.status()).workers[0].restarts == 1

        await until(replaced)


async def test_a_worker_that_is_stalled_is_replaced_and_its_requests_answered(tmp_path):
    model = folder(tmp_path / "model", latency_s=0.2)
    async with (
        serve(config(model, health_interval_s=0.5), token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=60) as client,
    ):
        victim = service.fleet.slots[0]
        requests = [asyncio.create_task(ask(client, number)) for number in range(8)]

        async def busy():
            return victim.num_in_flight > 0

        await until(busy)
        os.kill(service.fleet.process(victim).pid, signal.SIGSTOP)
        answers = await asyncio.gather(*requests)
        assert [answer.sampling.seed for answer in answers] == list(range(8))

        async def back():
            status = await client.status()
            return status.workers[0].restarts == 1 and status.workers[0].state == "ready"

        await until(back)


async def test_a_full_queue_is_answered_with_429_and_the_client_waits(tmp_path):
    model = folder(tmp_path / "model", latency_s=0.1)
    tight = config(model, num_workers=1, max_batch_size=1, max_queue=2)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with (
        serve(tight, token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=60) as client,
        aiohttp.ClientSession(service.url, headers=headers) as http,
    ):
        body = {"messages": [{"role": "user", "content": "hello"}]}

        async def raw():
            async with http.post("/v1/chat/completions", json=body) as response:
                return response.status, response.headers.get("Retry-After")

        answers = await asyncio.gather(*(raw() for _ in range(12)))
        assert {status for status, _ in answers} == {200, 429}
        assert all(int(after) >= 1 for status, after in answers if status == 429)
        completions = await asyncio.gather(*(ask(client, number) for number in range(8)))
        assert [completion.sampling.seed for completion in completions] == list(range(8))
        async with http.get("/metrics") as response:
            text = await response.text()
            assert response.headers["Content-Type"].startswith("text/plain")
        assert 'dart_requests_total{status="429"}' in text
        assert 'dart_worker_state{worker="worker-0",state="ready"} 1' in text


async def test_a_caller_that_waits_less_gets_an_answer_in_its_time(tmp_path):
    model = folder(tmp_path / "model", latency_s=3600)
    auth = {"Authorization": f"Bearer {TOKEN}"}
    body = {"messages": [{"role": "user", "content": "hello"}]}
    async with (
        serve(config(model, num_workers=1), token=TOKEN) as service,
        aiohttp.ClientSession(service.url, headers=auth) as http,
    ):
        expected = {"0.2": 504, "0": 400, "-1": 400, "soon": 400, "nan": 400}
        for text, status in expected.items():
            headers = {"X-Request-Timeout-S": text}
            async with http.post("/v1/chat/completions", json=body, headers=headers) as response:
                assert response.status == status
        assert [slot.restarts for slot in service.fleet.slots] == [0]
