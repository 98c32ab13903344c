"""The scripted solutions solve their tasks, through the same actions as an agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from dart_gui.config import EnvConfig
from dart_gui.env.browser import oracle
from dart_gui.env.browser.cluster import BrowserCluster
from dart_gui.env.suites import eval_seed, get_suite
from dart_gui.errors import ConfigError
from dart_gui.types import Action, Click, Point, Task, TypeText

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

NUM_SEEDS = 6
KINDS = {
    "click-test": ["click"],
    "click-test-2": ["click"],
    "click-dialog": ["click"],
    "click-color": ["click"],
    "focus-text-2": ["click"],
    "grid-coordinate": ["click"],
    "click-button-sequence": ["click", "click"],
    "click-collapsible": ["click", "click"],
    "enter-text": ["click", "type", "click"],
}


@pytest.fixture(scope="module")
async def cluster() -> AsyncIterator[BrowserCluster]:
    made = BrowserCluster(EnvConfig(num_envs=4))
    await made.start()
    yield made
    await made.close()


async def solve(cluster: BrowserCluster, task: Task, corner: int) -> tuple[list[str], bool]:
    """Click a corner of the target's box, which is to be as good as its centre."""
    kinds: list[str] = []
    async with cluster.lease(task) as env:
        observation = await env.reset(task)
        while not observation.terminated and len(kinds) < 4:
            decision = await oracle.decide(env)
            action: Action = decision.action
            if decision.box is not None:
                x0, y0, x1, y1 = decision.box
                action = Click(point=[Point(x0, y0), Point(x1, y0), Point(x0, y1)][corner])
            observation = await env.step(action)
            kinds.append(action.kind)
        return kinds, (await env.evaluate()).success


@pytest.mark.parametrize("task_id", get_suite("miniwob").default_tasks)
async def test_every_default_task_is_solved(cluster: BrowserCluster, task_id: str) -> None:
    tasks = [Task(task_id=task_id, seed=eval_seed(i)) for i in range(NUM_SEEDS)]
    solved = await asyncio.gather(*(solve(cluster, task, i % 3) for i, task in enumerate(tasks)))
    assert solved == [(KINDS[task_id.partition("/")[2]], True)] * NUM_SEEDS


async def test_a_half_typed_text_is_finished(cluster: BrowserCluster) -> None:
    task = Task(task_id="miniwob/enter-text", seed=5)  # asks for "Cristin"
    async with cluster.lease() as env:
        assert '"Cristin"' in (await env.reset(task)).instruction
        await env.step(await oracle.next_action(env))
        await env.step(TypeText(text="Cris"))
        assert await oracle.next_action(env) == TypeText(text="tin")
        assert await oracle.target_box(env) is None


async def test_a_task_without_solution_is_a_configuration_error(cluster: BrowserCluster) -> None:
    async with cluster.lease() as env:
        await env.reset(Task(task_id="miniwob/tic-tac-toe", seed=0))
        with pytest.raises(ConfigError, match="no scripted solution"):
            await oracle.decide(env)


@pytest.mark.parametrize("page", ["click-test-2", "click-button-sequence"])
async def test_the_box_is_what_a_click_reaches(cluster: BrowserCluster, page: str) -> None:
    async with cluster.lease() as env:
        await env.reset(Task(task_id=f"miniwob/{page}", seed=5))
        box = await oracle.target_box(env)
        assert box is not None
        x0, y0, x1, y1 = box
        inside = await env.slot.page.evaluate(
            "([x, y]) => document.elementFromPoint(x, y).id", [x0, y0]
        )
        assert inside == "subbtn"
        assert 0 < x1 - x0 < 40
        assert 0 < y1 - y0 < 40
