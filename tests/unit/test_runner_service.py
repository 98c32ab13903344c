"""A service that is restarted at another place is found again."""

import json
from types import SimpleNamespace

import pytest

from dart_gui.errors import AuthError, ContextLengthError, PolicyError
from dart_gui.runner.fakes import completion
from dart_gui.runner.service import FoundPolicy, place_in
from dart_gui.types import SamplingParams

SAMPLING = SamplingParams(temperature=1.0, max_tokens=8, seed=0)


class FakeClient:
    """Of one URL; fails where ``errors`` says so."""

    def __init__(self, url, errors, log):
        self.url, self.errors, self.log = url, errors, log
        self.states, self.version = ["ready"], 7

    async def __aenter__(self):
        self.log.append(f"open {self.url}")
        return self

    async def __aexit__(self, *_):
        self.log.append(f"close {self.url}")

    async def complete(self, messages, images, sampling, *, trajectory_id):
        self.log.append(f"complete {self.url}")
        if self.url in self.errors:
            raise self.errors[self.url]
        return completion("Action: wait()", sampling)

    async def status(self):
        if self.url in self.errors:
            raise self.errors[self.url]
        workers = [SimpleNamespace(state=state) for state in self.states]
        return SimpleNamespace(workers=workers, min_version=self.version)


class Rig:
    def __init__(self, place=("http://a", 1)):
        self.place = place
        self.errors = {}
        self.log = []
        self.clients = []
        self.policy = FoundPolicy(lambda: self.place, self.connect)

    def connect(self, url):
        self.clients.append(FakeClient(url, self.errors, self.log))
        return self.clients[-1]

    async def complete(self):
        return await self.policy.complete([], {}, SAMPLING, trajectory_id="t")


async def test_keeps_the_client_while_all_is_well():
    rig = Rig()
    async with rig.policy:
        await rig.complete()
        await rig.complete()
    assert rig.log == ["open http://a", "complete http://a", "complete http://a", "close http://a"]


async def test_sends_a_request_that_failed_to_the_new_place():
    rig = Rig()
    async with rig.policy:
        await rig.complete()
        rig.errors["http://a"] = PolicyError("connection refused")
        rig.place = ("http://b", 2)
        assert (await rig.complete()).text == "Action: wait()"
        await rig.complete()
    assert rig.log[1:] == [
        "complete http://a",
        "complete http://a",
        "open http://b",
        "complete http://b",
        "complete http://b",
        "close http://b",
        "close http://a",
    ]


async def test_a_new_process_at_the_old_url_is_a_new_client():
    rig = Rig()
    rig.errors["http://a"] = PolicyError("it has forgotten the images")
    async with rig.policy:
        rig.place = ("http://a", 1)
        with pytest.raises(PolicyError):
            await rig.complete()
        rig.place = ("http://a", 2)
        with pytest.raises(PolicyError):
            await rig.complete()
    assert len(rig.clients) == 2


@pytest.mark.parametrize("error", [PolicyError("503"), ContextLengthError("long"), AuthError("no")])
async def test_a_failure_at_the_same_place_is_raised_once(error):
    rig = Rig()
    rig.errors["http://a"] = error
    async with rig.policy:
        with pytest.raises(type(error)):
            await rig.complete()
    assert rig.log.count("complete http://a") == 1


async def test_no_place_yet():
    rig = Rig(place=None)
    async with rig.policy:
        with pytest.raises(PolicyError, match="not said where"):
            await rig.policy.served_version()
        rig.place = ("http://a", 1)
        assert await rig.policy.served_version() == 7


@pytest.mark.parametrize(
    ("states", "is_up"),
    [
        (["ready"], True),
        (["draining"], True),
        (["dead", "loading"], True),
        (["starting", "dead"], False),
        ([], False),
    ],
)
async def test_served_version_needs_a_worker_that_is_up(states, is_up):
    rig = Rig()
    async with rig.policy:
        await rig.policy.served_version()
        rig.clients[0].states = states
        if is_up:
            assert await rig.policy.served_version() == 7
        else:
            with pytest.raises(PolicyError, match="no worker"):
                await rig.policy.served_version()


def test_place_in_reads_what_the_service_wrote(tmp_path):
    locate = place_in(tmp_path)
    assert locate() is None
    (tmp_path / "status").mkdir()
    path = tmp_path / "status" / "rollout.json"
    path.write_text('{"url": "http://127.0')  # half of it
    assert locate() is None
    path.write_text(json.dumps({"url": "http://127.0.0.1:8000/", "pid": 12}))
    assert locate() == ("http://127.0.0.1:8000", 12)
    assert place_in(tmp_path, url="http://gpu:9/")() == ("http://gpu:9", 0)
