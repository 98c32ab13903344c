"""An episode is a function of (task, seed, actions), to the last pixel, on whichever page it runs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from dart_gui.config import EnvConfig
from dart_gui.env.browser.cluster import BrowserCluster
from dart_gui.env.browser.miniwob import REUSABLE_PAGES
from dart_gui.env.browser.page_env import PageEnv
from dart_gui.env.suites import get_suite
from dart_gui.types import (
    Action,
    Click,
    Drag,
    Evaluation,
    Hotkey,
    Hover,
    KeyDown,
    Observation,
    Point,
    Press,
    Scroll,
    Task,
    TypeText,
    Wait,
)

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

NUM_PAGES = 8
NUM_ACTIONS = 4
SEED = 1_234_567

SCROLLS_UNDER_A_DRAG = "Chromium scrolls a box by wall-clock time while the mouse selects in it"
EXCEPTIONS = {
    f"miniwob/{page}": SCROLLS_UNDER_A_DRAG
    for page in (
        "book-flight",
        "book-flight-nodelay",
        "click-scroll-list",
        "copy-paste",
        "copy-paste-2",
        "daily-calendar",
        "email-inbox",
        "email-inbox-delete",
        "email-inbox-forward",
        "email-inbox-forward-nl",
        "email-inbox-forward-nl-turk",
        "email-inbox-important",
        "email-inbox-nl-turk",
        "email-inbox-noscroll",
        "email-inbox-reply",
        "email-inbox-star-reply",
        "order-food",
        "scroll-text",
        "scroll-text-2",
        "sign-agreement",
        "social-media",
        "social-media-all",
        "social-media-some",
    )
}
"""Task -> why a drag does not replay on it. Its episode is made of all other actions, and replays."""


@dataclass(frozen=True, slots=True)
class Episode:
    observations: list[Observation]
    evaluation: Evaluation


def random_point(rng: random.Random) -> Point:
    return Point(rng.randrange(160), rng.randrange(50, 210))


def random_action(rng: random.Random, *, drags: bool = True, keys: bool = True) -> Action:
    point = random_point(rng)
    choices: list[Action] = [
        *[Click(point=point)] * 8,
        Click(point=point, count=2),
        Click(point=point, button="right"),
        Hover(point=point),
        Scroll(direction=rng.choice(("up", "down", "left", "right")), point=point),
        Wait(),
    ]
    if drags:
        choices += [Drag(start=point, end=random_point(rng))] * 2
    if keys:
        choices += [
            TypeText(text=rng.choice(("abc", "naïve 日本\n", "a\tb"))),
            Press(key=rng.choice(("enter", "tab", "down", "space", "backspace", "pagedown"))),
            Hotkey(keys=("ctrl", rng.choice("acvxz"))),
        ]
    return rng.choice(choices)


async def play(
    cluster: BrowserCluster, task: Task, actions: Sequence[Action], *, hint: bool = False
) -> Episode:
    async with cluster.lease(task if hint else None) as env:
        observations = [await env.reset(task)]
        for action in actions:
            if not observations[-1].terminated:
                observations.append(await env.step(action))
        return Episode(observations, await env.evaluate())


def differences(first: Episode, second: Episode) -> list[str]:
    pairs = list(zip(first.observations, second.observations, strict=False))
    found = [f"frame {i}" for i, (a, b) in enumerate(pairs) if a.screenshot != b.screenshot]
    found += [f"step {i}" for i, (a, b) in enumerate(pairs) if _facts(a) != _facts(b)]
    if len(first.observations) != len(second.observations):
        found.append("number of steps")
    if first.evaluation != second.evaluation:
        found.append("evaluation")
    return found


def _facts(observation: Observation) -> tuple[str, bool, str | None]:
    return observation.instruction, observation.terminated, observation.action_error


@pytest.fixture(scope="module")
async def cluster() -> AsyncIterator[BrowserCluster]:
    made = BrowserCluster(EnvConfig(num_envs=NUM_PAGES, timeout_s=60.0))
    await made.start()
    yield made
    await made.close()


@pytest.mark.slow
async def test_every_task_replays_bit_exactly(cluster: BrowserCluster) -> None:
    task_ids = get_suite("miniwob").task_ids
    assert len(task_ids) == 125
    assert EXCEPTIONS.keys() <= set(task_ids)

    async def play_all(order: Sequence[str]) -> dict[str, Episode]:
        played = await asyncio.gather(*(play_one(task_id) for task_id in order))
        return dict(zip(order, played, strict=True))

    async def play_one(task_id: str) -> Episode:
        rng = random.Random(task_id)
        drags = task_id not in EXCEPTIONS
        actions = [random_action(rng, drags=drags) for _ in range(NUM_ACTIONS)]
        return await play(cluster, Task(task_id=task_id, seed=SEED), actions)

    first = await play_all(task_ids)
    second = await play_all(task_ids[::-1])  # other pages, after other episodes
    found = {task_id: differences(first[task_id], second[task_id]) for task_id in task_ids}
    assert {task_id: what for task_id, what in found.items() if what} == {}
    assert all(first[task_id].observations[0].instruction for task_id in task_ids)


@pytest.mark.parametrize("page", sorted(REUSABLE_PAGES))
async def test_a_page_that_is_reused_equals_a_fresh_one(page: str) -> None:
    """Episodes one after another on one page, in place, against each on a page of its own."""
    rng = random.Random(page)
    plans = [
        (
            Task(task_id=f"miniwob/{page}", seed=rng.randrange(2**30)),
            [random_action(rng, keys=i % 4 == 3) for _ in range(3)],
        )
        for i in range(8)
    ]
    reused = BrowserCluster(EnvConfig(num_envs=1))
    fresh = BrowserCluster(EnvConfig(num_envs=len(plans)))
    await asyncio.gather(reused.start(), fresh.start())
    try:
        expected = await asyncio.gather(*(play(fresh, task, actions) for task, actions in plans))
        for (task, actions), episode in zip(plans, expected, strict=True):
            assert differences(await play(reused, task, actions, hint=True), episode) == []
    finally:
        await asyncio.gather(reused.close(), fresh.close())


async def test_a_fork_is_a_replay(cluster: BrowserCluster) -> None:
    task = Task(task_id="miniwob/click-button-sequence", seed=11)
    prefix: list[Action] = [Hover(point=Point(80, 100)), Click(point=Point(5, 205))]
    ends: list[list[Action]] = [
        [Click(point=Point(80, 60))],
        [Wait(), Click(point=Point(3, 120))],
    ]
    for end in ends:
        whole, forked = await asyncio.gather(
            play(cluster, task, [*prefix, *end]), play(cluster, task, [*prefix, *end])
        )
        assert differences(whole, forked) == []


async def test_time_stands_still_while_the_model_thinks(cluster: BrowserCluster) -> None:
    """The stock price of this task changes by a timer."""
    task = Task(task_id="miniwob/stock-market", seed=5)
    async with cluster.lease() as slow, cluster.lease() as fast:
        await asyncio.gather(slow.reset(task), fast.reset(task))
        for _ in range(3):
            await asyncio.sleep(0.3)
            thought = await slow.step(Wait())
            assert thought.screenshot == (await fast.step(Wait())).screenshot


async def test_pages_do_not_share_a_clipboard(cluster: BrowserCluster) -> None:
    task = Task(task_id="miniwob/enter-text", seed=2)
    async with cluster.lease() as one, cluster.lease() as other:
        for env, text in ((one, "mine"), (other, "yours")):
            await env.reset(task)
            await env.slot.page.focus("#tt")
            await env.step(TypeText(text=text))
            for keys in (("ctrl", "a"), ("ctrl", "x")):
                await env.step(Hotkey(keys=keys))
        for env, text in ((one, "mine"), (other, "yours")):
            await env.step(Hotkey(keys=("ctrl", "v")))
            await env.step(Hotkey(keys=("ctrl", "v")))
            assert await env.slot.page.input_value("#tt") == text * 2


async def test_a_held_key_does_not_outlive_its_episode() -> None:
    task = Task(task_id="miniwob/enter-text", seed=2)
    cluster = BrowserCluster(EnvConfig(num_envs=1))
    await cluster.start()
    try:
        async with cluster.lease() as env:
            await env.reset(task)
            await env.step(KeyDown(key="shift"))
            assert await shift_is_held(env)
        async with cluster.lease() as env:
            await env.reset(task)
            assert not await shift_is_held(env)
    finally:
        await cluster.close()


async def shift_is_held(env: PageEnv) -> bool:
    page = env.slot.page
    await page.evaluate("() => { onmousemove = (event) => { globalThis.held = event.shiftKey; }; }")
    await env.step(Hover(point=Point(80, 150)))
    return bool(await page.evaluate("held"))
