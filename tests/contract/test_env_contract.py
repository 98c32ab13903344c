"""What every environment promises, asked of the scripted one and of real pages alike."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator

import pytest
from PIL import Image

from dart_gui.config import EnvConfig
from dart_gui.env.browser.cluster import BrowserCluster
from dart_gui.env.protocol import EnvCluster
from dart_gui.env.suites import get_suite
from dart_gui.errors import ConfigError, EnvError
from dart_gui.fakes import FakeCluster
from dart_gui.types import (
    Action,
    CallUser,
    Click,
    Drag,
    Evaluation,
    Finished,
    Hotkey,
    Hover,
    KeyDown,
    KeyUp,
    Point,
    Press,
    Scroll,
    Task,
    TypeText,
    Wait,
)

TASK = Task(task_id="miniwob/enter-text", seed=7)
P = Point(100, 200)  # white space in the task and in the fake alike

HARMLESS: list[Action] = [
    Click(point=P),
    Click(point=P, count=2),
    Click(point=P, button="right"),
    Hover(point=P),
    Drag(start=P, end=Point(10, 205)),
    Scroll(direction="up"),
    Scroll(direction="down", point=P),
    Scroll(direction="left", point=P),
    Scroll(direction="right", point=P),
    Hotkey(keys=("ctrl", "c")),
    Press(key="escape"),
    KeyDown(key="shift"),
    KeyUp(key="shift"),
    TypeText(text='naïve "text" \\ 日本 😀'),
    Wait(),
]
REFUSED: list[Action] = [
    Click(point=Point(160, 5)),
    Hover(point=Point(5, 210)),
    Drag(start=P, end=Point(-1, 5)),
    Scroll(direction="up", point=Point(float("nan"), 5)),
    Press(key="unknownkey"),
    Hotkey(keys=("ctrl", "unknownkey")),
    KeyDown(key="unknownkey"),
    KeyUp(key="unknownkey"),
]


@pytest.fixture(scope="module", params=["fake", pytest.param("browser", marks=pytest.mark.browser)])
async def cluster(request: pytest.FixtureRequest) -> AsyncIterator[EnvCluster]:
    known = get_suite("miniwob").task_ids.__contains__
    made: EnvCluster = (
        FakeCluster(num_envs=2, knows=known)
        if request.param == "fake"
        else BrowserCluster(EnvConfig(num_envs=2, action_ms=50, wait_ms=50))
    )
    await made.start()
    yield made
    await made.close()


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_reset_shows_the_task(cluster: EnvCluster) -> None:
    async with cluster.lease(TASK) as env:
        observation = await env.reset(TASK)
    assert observation.instruction
    assert not observation.terminated
    assert observation.action_error is None
    image = Image.open(io.BytesIO(observation.screenshot))
    assert image.format == "PNG"
    assert image.size == (observation.width, observation.height) == (160, 210)


async def test_same_task_and_seed_show_the_same(cluster: EnvCluster) -> None:
    async with cluster.lease() as one, cluster.lease() as other:
        first, second = await one.reset(TASK), await other.reset(TASK)
    assert first == second


async def test_seeds_differ(cluster: EnvCluster) -> None:
    async with cluster.lease() as one, cluster.lease() as other:
        first = await one.reset(TASK)
        second = await other.reset(Task(task_id=TASK.task_id, seed=TASK.seed + 1))
    assert first.screenshot != second.screenshot


@pytest.mark.parametrize("action", HARMLESS, ids=repr)
async def test_every_action_can_be_carried_out(cluster: EnvCluster, action: Action) -> None:
    async with cluster.lease() as env:
        await env.reset(TASK)
        observation = await env.step(action)
        assert observation.action_error is None
        assert not observation.terminated


@pytest.mark.parametrize("action", REFUSED, ids=repr)
async def test_what_cannot_be_done_changes_nothing(cluster: EnvCluster, action: Action) -> None:
    async with cluster.lease() as env:
        before = await env.reset(TASK)
        after = await env.step(action)
        assert after.action_error
        assert after.screenshot == before.screenshot
        assert (await env.step(Hover(point=P))).action_error is None


@pytest.mark.parametrize("action", [Finished(), CallUser()], ids=repr)
async def test_words_to_the_runner_are_not_for_the_screen(
    cluster: EnvCluster, action: Action
) -> None:
    async with cluster.lease() as env:
        await env.reset(TASK)
        with pytest.raises(ValueError, match=action.kind):
            await env.step(action)
        assert not (await env.step(Hover(point=P))).terminated


async def test_an_unfinished_episode_is_worth_nothing(cluster: EnvCluster) -> None:
    async with cluster.lease() as env:
        await env.reset(TASK)
        assert await env.evaluate() == Evaluation(reward=0.0, success=False)


async def test_an_environment_is_single_use(cluster: EnvCluster) -> None:
    async with cluster.lease() as env:
        await env.reset(TASK)
        with pytest.raises(RuntimeError, match="single use"):
            await env.reset(TASK)


async def test_nothing_works_before_the_reset(cluster: EnvCluster) -> None:
    async with cluster.lease() as env:
        with pytest.raises(RuntimeError, match=r"before reset\(\)"):
            await env.step(Hover(point=P))
        with pytest.raises(RuntimeError, match=r"before reset\(\)"):
            await env.evaluate()


async def test_an_unknown_task_is_a_configuration_error(cluster: EnvCluster) -> None:
    async with cluster.lease() as env:
        with pytest.raises(ConfigError, match="enter-texr"):
            await env.reset(Task(task_id="miniwob/enter-texr", seed=0))


async def test_close_is_idempotent(cluster: EnvCluster) -> None:
    async with cluster.lease() as env:
        await env.reset(TASK)
        await env.close()
        await env.close()


async def test_leases_are_counted_and_bounded(cluster: EnvCluster) -> None:
    async with cluster.lease(), cluster.lease():
        assert cluster.stats().num_busy == cluster.stats().num_envs == 2
        third = asyncio.create_task(_lease_once(cluster))
        await asyncio.sleep(0)
        assert not third.done()
    await third
    assert cluster.stats().num_busy == 0


async def test_a_lease_that_ends_by_an_error_is_given_back(cluster: EnvCluster) -> None:
    for _ in range(3):
        with pytest.raises(KeyError):
            await _lease_and_raise(cluster)
    assert cluster.stats().num_busy == 0


async def test_a_closed_cluster_leases_nothing() -> None:
    for closed in (FakeCluster(), BrowserCluster(EnvConfig())):
        await closed.close()
        await closed.close()
        with pytest.raises(EnvError, match="not running"):
            await _lease_once(closed)


async def _lease_once(cluster: EnvCluster) -> None:
    async with cluster.lease():
        pass


async def _lease_and_raise(cluster: EnvCluster) -> None:
    async with cluster.lease() as env:
        await env.reset(TASK)
        raise KeyError("the episode went wrong")
