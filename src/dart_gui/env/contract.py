"""What every environment promises, as checks that can be run over any suite.

``dart-gui env check`` runs them over a suite of yours, the contract tests over ours. A check gives
words for what it found, or raises ``Broken``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from dart_gui.config import EnvConfig
from dart_gui.env.probing import (
    Broken,
    Probe,
    check_frame,
    check_score,
    difference,
    raises,
    require,
)
from dart_gui.env.protocol import EnvCluster
from dart_gui.env.suites import EVAL_SEEDS, Suite
from dart_gui.errors import ConfigError, DartError, EnvError
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
    Observation,
    Point,
    Press,
    Scroll,
    Task,
    TypeText,
    Wait,
)

NUM_SEEDS = 6
NUM_RANDOM_ACTIONS = 6
PAUSE_S = 0.2
"""How long the second replay thinks before each action: what runs by wall clock shows."""
CHECK_TIMEOUT_S = 300.0

Check = Callable[[Probe], Awaitable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    task_id: str
    check: str
    ok: bool
    text: str


def title_of(check: Check) -> str:
    return check.__name__.replace("_", " ")  # type: ignore[attr-defined]


# --- what is shown -------------------------------------------------------------------------------


async def reset_shows_the_task(probe: Probe) -> str:
    async with probe.episode() as (_, shown):
        pass
    require(bool(shown.instruction.strip()), "the instruction is empty")
    require(not shown.terminated, "the task has terminated before anything was done")
    require(shown.action_error is None, f"an action error without action: {shown.action_error}")
    check_frame(shown)
    return f"{shown.width} x {shown.height}, {shown.instruction[:60]!r}"


async def seeds_vary_the_instance(probe: Probe) -> str:
    """Training and held-out seeds; one instance only would be learned by heart."""
    first = probe.task.seed
    seeds = [first + i for i in range(NUM_SEEDS)] + [EVAL_SEEDS[i] for i in range(NUM_SEEDS)]
    seen = set()
    for seed in seeds:
        async with probe.episode(replace(probe.task, seed=seed)) as (_, shown):
            seen.add((shown.instruction, shown.screenshot))
    require(len(seen) > 1, f"{len(seeds)} seeds, training and held-out, all show the same")
    hint = "; hardly varies" if len(seen) < len(seeds) / 2 else ""
    return f"{len(seen)} instances of {len(seeds)} seeds{hint}"


# --- an episode is a function of (task, seed, actions) -------------------------------------------


async def same_seed_shows_the_same(probe: Probe) -> str:
    async with probe.episode() as (_, first), probe.episode() as (_, second):
        require(
            first == second, f"two resets to seed {probe.task.seed}: {difference(first, second)}"
        )
    return ""


async def replays_bit_exactly(probe: Probe) -> str:
    """The second time with pauses while the model thinks, beside another episode."""
    actions, played, score = await play_at_random(probe)
    other = replace(probe.task, seed=probe.task.seed + 1)
    async with probe.episode(other), probe.episode() as (env, shown):
        again = [shown]
        for action in actions:
            await probe.sleep(PAUSE_S)
            again.append(await env.step(action))
        score_again = await env.evaluate()
    for index, (first, second) in enumerate(zip(played, again, strict=True)):
        after = repr(actions[index - 1]) if index else "the reset"
        require(first == second, f"replayed, {difference(first, second)} after {after}")
    require(score == score_again, f"the reward was {score}, and replayed {score_again}")
    ended = ", terminated" if played[-1].terminated else ""
    return f"{len(actions)} actions{ended}, reward {score.reward:g}"


async def play_at_random(probe: Probe) -> tuple[list[Action], list[Observation], Evaluation]:
    rng = random.Random(probe.task.seed)
    actions: list[Action] = []
    async with probe.episode() as (env, shown):
        played = [shown]
        while len(actions) < NUM_RANDOM_ACTIONS and not shown.terminated:
            actions.append(random_action(rng, shown))
            shown = await env.step(actions[-1])
            check_frame(shown)
            played.append(shown)
        return actions, played, check_score(await env.evaluate())


def random_action(rng: random.Random, shown: Observation) -> Action:
    point = Point(rng.randrange(shown.width), rng.randrange(shown.height))
    choices: list[Action] = [
        *[Click(point=point)] * 5,
        Hover(point=point),
        Scroll(direction="down", point=point),
        TypeText(text="ab c"),
        Press(key="tab"),
        Wait(),
    ]
    return rng.choice(choices)


# --- actions -------------------------------------------------------------------------------------


def possible_actions(shown: Observation) -> list[Action]:
    """One of each kind, in the bottom right of the screen, where there is seldom anything."""
    point = Point(shown.width * 0.625, shown.height * 0.95)
    return [
        Click(point=point),
        Click(point=point, count=2),
        Click(point=point, button="right"),
        Hover(point=point),
        Drag(start=point, end=Point(10, shown.height - 5)),
        Scroll(direction="up"),
        Scroll(direction="down", point=point),
        Scroll(direction="left", point=point),
        Scroll(direction="right", point=point),
        Hotkey(keys=("ctrl", "c")),
        Press(key="escape"),
        KeyDown(key="shift"),
        KeyUp(key="shift"),
        TypeText(text='naïve "text" \\ 日本 😀'),
        Wait(),
    ]


def refused_actions(shown: Observation) -> list[Action]:
    point = Point(shown.width / 2, shown.height / 2)
    return [
        Click(point=Point(shown.width, 5)),
        Hover(point=Point(5, shown.height)),
        Drag(start=point, end=Point(-1, 5)),
        Scroll(direction="up", point=Point(float("nan"), 5)),
        Press(key="unknownkey"),
        Hotkey(keys=("ctrl", "unknownkey")),
        KeyDown(key="unknownkey"),
        KeyUp(key="unknownkey"),
    ]


async def every_action_can_be_carried_out(probe: Probe) -> str:
    """In one episode, or in several where an action ends it."""
    async with probe.episode() as (_, shown):
        left = possible_actions(shown)
    while left:
        async with probe.episode() as (env, shown):
            while left and not shown.terminated:
                action = left.pop(0)
                shown = await env.step(action)
                require(shown.action_error is None, f"{action!r} was refused: {shown.action_error}")
                check_frame(shown)
    return ""


async def what_cannot_be_done_changes_nothing(probe: Probe) -> str:
    async with probe.episode() as (env, before):
        for action in refused_actions(before):
            after = await env.step(action)
            require(
                bool(after.action_error), f"{action!r} was carried out, expected an action error"
            )
            require(
                replace(after, action_error=None) == before,
                f"{action!r} was refused ({after.action_error}), and yet changed something: "
                f"{difference(before, replace(after, action_error=None))}",
            )
        shown = await env.step(Hover(point=Point(1, 1)))
        require(
            shown.action_error is None, f"an action after it was refused too: {shown.action_error}"
        )
    return ""


async def words_to_the_runner_are_not_for_the_screen(probe: Probe) -> str:
    words: Sequence[Action] = (Finished(), CallUser())
    async with probe.episode() as (env, _):
        for action in words:
            await raises(ValueError, env.step(action), f"step({action.kind})")
        await env.step(Hover(point=Point(1, 1)))
    return ""


# --- reward --------------------------------------------------------------------------------------


async def an_untouched_task_is_no_success(probe: Probe) -> str:
    async with probe.episode() as (env, _):
        score = check_score(await env.evaluate())
    require(
        not score.success and score.reward < 1, f"{score} for an episode in which nothing was done"
    )
    return f"reward {score.reward:g}"


# --- a life of one episode -----------------------------------------------------------------------


async def an_environment_is_single_use(probe: Probe) -> str:
    async with probe.episode() as (env, _):
        await raises(RuntimeError, env.reset(probe.task), "a second reset()")
    return ""


async def nothing_works_before_the_reset(probe: Probe) -> str:
    async with probe.cluster.lease() as env:
        await raises(RuntimeError, env.step(Hover(point=Point(1, 1))), "step() before reset()")
        await raises(RuntimeError, env.evaluate(), "evaluate() before reset()")
    return ""


async def an_unknown_task_is_a_configuration_error(probe: Probe) -> str:
    unknown = replace(probe.task, task_id=f"{probe.task.task_id}-which-is-not")
    async with probe.cluster.lease() as env:
        await raises(ConfigError, env.reset(unknown), f"reset() to {unknown.task_id}")
    return ""


async def close_is_idempotent(probe: Probe) -> str:
    async with probe.episode() as (env, _):
        await env.close()
        await env.close()
    return ""


async def leases_are_counted_and_bounded(probe: Probe) -> str:
    cluster = probe.cluster
    before, total = cluster.stats().num_busy, cluster.stats().num_envs
    require(before == 0, f"{before} environments are leased before anybody leased one")
    waiting = asyncio.Event()
    async with AsyncExitStack() as leases:
        for _ in range(total):
            await leases.enter_async_context(cluster.lease())
        busy = cluster.stats().num_busy
        require(busy == total, f"{busy} environments are leased, after {total} leases")
        one_more = asyncio.create_task(_lease(cluster, waiting))
        await waiting.wait()
        await asyncio.sleep(0)
        early = one_more.done()
    await one_more
    require(not early, f"{total + 1} of {total} environments could be leased at once")
    free = cluster.stats().num_busy
    require(free == 0, f"{free} environments are leased after all were given back")
    return f"{total} at once"


async def a_lease_that_ends_by_an_error_is_given_back(probe: Probe) -> str:
    for _ in range(probe.cluster.stats().num_envs + 1):
        await raises(KeyError, _lease_and_fail(probe), "a lease in which a KeyError was raised")
    busy = probe.cluster.stats().num_busy
    require(busy == 0, f"{busy} environments are still leased")
    return ""


async def _lease_and_fail(probe: Probe) -> None:
    async with probe.episode():
        raise KeyError("the episode went wrong")


async def a_closed_cluster_leases_nothing(probe: Probe) -> str:
    """The last check of a cluster: it closes it, twice."""
    await probe.cluster.close()
    await probe.cluster.close()
    await raises(EnvError, _lease(probe.cluster), "a lease of a closed cluster")
    return ""


TASK_CHECKS: tuple[Check, ...] = (
    reset_shows_the_task,
    same_seed_shows_the_same,
    seeds_vary_the_instance,
    replays_bit_exactly,
    every_action_can_be_carried_out,
    what_cannot_be_done_changes_nothing,
    words_to_the_runner_are_not_for_the_screen,
    an_untouched_task_is_no_success,
    an_environment_is_single_use,
    nothing_works_before_the_reset,
    an_unknown_task_is_a_configuration_error,
    close_is_idempotent,
)
"""Of each task."""
CLUSTER_CHECKS: tuple[Check, ...] = (
    leases_are_counted_and_bounded,
    a_lease_that_ends_by_an_error_is_given_back,
    a_closed_cluster_leases_nothing,
)
"""Of the cluster, once, in this order."""


async def _lease(cluster: EnvCluster, asking: asyncio.Event | None = None) -> None:
    if asking is not None:
        asking.set()
    async with cluster.lease():
        pass


async def examine(check: Check, probe: Probe) -> Verdict:
    """Run one check; whatever goes wrong in it is the environment's."""
    name = title_of(check)
    task_id = probe.task.task_id
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_S):
            return Verdict(task_id=task_id, check=name, ok=True, text=await check(probe))
    except (Broken, DartError) as error:
        text = str(error)
    except TimeoutError:
        text = f"no end after {CHECK_TIMEOUT_S:g} s"
    except Exception as error:  # boundary: the environment is somebody else's code
        text = f"{type(error).__name__}: {error}"
    return Verdict(task_id=task_id, check=name, ok=False, text=text)


async def check_suite(
    suite: Suite, config: EnvConfig, task_ids: Sequence[str], *, seed: int = 0
) -> AsyncIterator[Verdict]:
    """All checks of ``task_ids``, in order, each as soon as it is known.

    Raises:
        SetupError: the cluster does not start.
    """
    cluster = suite.open_cluster(config.model_copy(update={"num_envs": 2, "num_browsers": 1}))
    try:
        await cluster.start()
        for task_id in task_ids:
            probe = Probe(cluster=cluster, task=Task(task_id=task_id, seed=seed))
            for check in TASK_CHECKS:
                yield await examine(check, probe)
        probe = Probe(cluster=cluster, task=Task(task_id=task_ids[0], seed=seed))
        for check in CLUSTER_CHECKS:
            yield replace(await examine(check, probe), task_id="")
    finally:
        await cluster.close()
