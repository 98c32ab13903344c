"""Each check of the contract fails where its promise is broken, and says how."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count

import pytest
from PIL import Image
from rich.console import Console

from dart_gui.config import EnvConfig
from dart_gui.env import contract
from dart_gui.env.contract import CLUSTER_CHECKS, TASK_CHECKS, Check, Verdict, check_suite, examine
from dart_gui.env.probing import Probe
from dart_gui.env.suites import Suite
from dart_gui.errors import ConfigError
from dart_gui.fakes import EpisodeScript, FakeClock, FakeCluster, FakeEnv
from dart_gui.launch import env_check
from dart_gui.launch.env_check import choose_tasks
from dart_gui.types import Action, Evaluation, Observation, Task

TASK = Task(task_id="s/a", seed=7)
SUITE = Suite(
    name="s",
    task_ids=("s/a", "s/b"),
    default_tasks=("s/b",),
    env_version="1",
    open_cluster=lambda config: FakeCluster(),
)


class LyingEnv(FakeEnv):
    """A scripted environment that keeps its promises but for what a test changes."""

    change: Callable[[Observation, int], Observation] = staticmethod(lambda shown, step: shown)
    score: Evaluation | None = None
    is_careless = False  # about the order of the calls, unknown tasks and refused actions

    async def reset(self, task: Task) -> Observation:
        if self.is_careless:
            self._task, self._knows = None, lambda task_id: True
        return self.change(await super().reset(task), 0)

    async def step(self, action: Action) -> Observation:
        if self.is_careless:
            self._task = self._task or TASK
            return replace(self._observe(), action_error=None)
        shown = await super().step(action)
        return self.change(shown, len(self.actions))

    async def evaluate(self) -> Evaluation:
        if self.is_careless:
            self._task = self._task or TASK
        honest = await super().evaluate()
        return self.score or honest


class LyingCluster(FakeCluster):
    def __init__(self, **lies: object) -> None:
        super().__init__(num_envs=2)
        self.lies = lies
        self.forgets = bool(lies.pop("forgets", False))

    @asynccontextmanager
    async def lease(self, task: Task | None = None) -> AsyncIterator[FakeEnv]:
        env = LyingEnv(EpisodeScript(), knows=lambda task_id: task_id == TASK.task_id)
        for name, value in self.lies.items():
            setattr(env, name, value)
        try:
            async with super().lease(task):
                yield env
        finally:
            if self.forgets:
                self._leased_at[env] = 0.0


async def verdict_of(check: Check, **lies: object) -> Verdict:
    cluster = LyingCluster(**lies)
    await cluster.start()
    return await examine(check, Probe(cluster=cluster, task=TASK, sleep=FakeClock().sleep))


def picture(width: int, height: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, kind)
    return file.getvalue()


def other_each_time() -> Callable[[Observation, int], Observation]:
    numbers = count()
    return lambda shown, step: replace(shown, instruction=f"number {next(numbers)}")


BROKEN = [
    (contract.reset_shows_the_task, {"change": lambda o, _: replace(o, instruction=" ")}, "empty"),
    (contract.reset_shows_the_task, {"change": lambda o, _: replace(o, terminated=True)}, "before"),
    (
        contract.reset_shows_the_task,
        {"change": lambda o, _: replace(o, screenshot=b"x")},
        "picture",
    ),
    (
        contract.reset_shows_the_task,
        {"change": lambda o, _: replace(o, screenshot=picture(160, 210, "JPEG"))},
        "JPEG, expected a PNG",
    ),
    (
        contract.reset_shows_the_task,
        {"change": lambda o, _: replace(o, width=320)},
        "has 160 x 210 pixels, the observation says 320 x 210",
    ),
    (contract.same_seed_shows_the_same, {"change": other_each_time()}, "another instruction"),
    (
        contract.seeds_vary_the_instance,
        {"change": lambda o, _: replace(o, instruction="the", screenshot=b"same")},
        "all show the same",
    ),
    (contract.replays_bit_exactly, {"change": other_each_time()}, "after the reset"),
    (contract.replays_bit_exactly, {"score": Evaluation(reward=2.0, success=True)}, r"in \[0, 1\]"),
    (
        contract.every_action_can_be_carried_out,
        {"change": lambda o, step: replace(o, action_error="no" if step else None)},
        "was refused: no",
    ),
    (
        contract.what_cannot_be_done_changes_nothing,
        {"is_careless": True},
        "expected an action error",
    ),
    (contract.words_to_the_runner_are_not_for_the_screen, {"is_careless": True}, "ValueError"),
    (
        contract.an_untouched_task_is_no_success,
        {"score": Evaluation(reward=1.0, success=True)},
        "nothing was done",
    ),
    (
        contract.an_untouched_task_is_no_success,
        {"score": Evaluation(reward=float("nan"), success=False)},
        "nan",
    ),
    (contract.an_environment_is_single_use, {"is_careless": True}, "expected RuntimeError"),
    (contract.nothing_works_before_the_reset, {"is_careless": True}, "expected RuntimeError"),
    (
        contract.an_unknown_task_is_a_configuration_error,
        {"is_careless": True},
        "expected ConfigError",
    ),
    (contract.close_is_idempotent, {"close": None}, "TypeError"),
    (contract.leases_are_counted_and_bounded, {"forgets": True}, "after all were given back"),
    (contract.a_lease_that_ends_by_an_error_is_given_back, {"forgets": True}, "still leased"),
]


@pytest.mark.parametrize(("check", "lies", "text"), BROKEN)
async def test_a_broken_promise_is_found(check: Check, lies: dict[str, object], text: str) -> None:
    verdict = await verdict_of(check, **lies)
    assert not verdict.ok
    assert re.search(text, verdict.text), verdict.text


def test_every_check_of_a_task_is_seen_to_fail() -> None:
    seen = {check for check, _, _ in BROKEN}
    assert seen == {*TASK_CHECKS, *CLUSTER_CHECKS[:-1]}


async def test_a_frame_that_differs_in_the_replay_is_named_by_its_action() -> None:
    numbers = count()

    def change(shown: Observation, step: int) -> Observation:
        width = 161 if step == 2 and next(numbers) else 160
        return replace(shown, screenshot=picture(width, 210), width=width)

    verdict = await verdict_of(contract.replays_bit_exactly, change=change)
    assert re.search(r"replayed, another width: 160, 161 after \w+\(", verdict.text), verdict.text


async def test_a_check_that_never_ends_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "CHECK_TIMEOUT_S", 0.01)

    async def wait_for_ever(probe: Probe) -> str:
        return str(await asyncio.Event().wait())

    verdict = await verdict_of(wait_for_ever)
    assert (verdict.ok, verdict.text) == (False, "no end after 0.01 s")


async def test_a_suite_is_checked_task_by_task_and_its_cluster_last() -> None:
    cluster = FakeCluster(num_envs=2, knows=SUITE.task_ids.__contains__)
    suite = replace(SUITE, open_cluster=lambda config: cluster)
    config = EnvConfig(suite="s", num_envs=8)
    verdicts = [verdict async for verdict in check_suite(suite, config, ("s/a", "s/b"))]
    assert all(verdict.ok for verdict in verdicts), [v for v in verdicts if not v.ok]
    tasks = [verdict.task_id for verdict in verdicts]
    num_task, num_cluster = len(TASK_CHECKS), len(CLUSTER_CHECKS)
    assert tasks == ["s/a"] * num_task + ["s/b"] * num_task + [""] * num_cluster


@pytest.mark.parametrize(
    ("names", "use_all", "expected"),
    [([], False, ("s/b",)), ([], True, ("s/a", "s/b")), (["a", "s/b"], False, ("s/a", "s/b"))],
)
def test_the_tasks_to_check(names: list[str], use_all: bool, expected: tuple[str, ...]) -> None:
    assert choose_tasks(SUITE, names, use_all=use_all) == expected


def test_the_command_shows_each_reason_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = LyingCluster(score=Evaluation(reward=7.0, success=True))
    suite = replace(SUITE, open_cluster=lambda config: cluster)
    monkeypatch.setattr(env_check, "get_suite", lambda reference: suite)
    monkeypatch.setattr(contract, "PAUSE_S", 0.0)
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    code = env_check.run_check(console, EnvConfig(suite="s"), ["a"], use_all=False, seed=0)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert code == 1
    assert shown.count("the reward is 7.0, expected one in [0, 1]") == 2
    assert re.search(r"2 of \d+ checks failed: s/a", shown), shown


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean s/b"):
        choose_tasks(SUITE, ["s/bb"], use_all=False)
