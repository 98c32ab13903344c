"""Conservation: the real scheduler, admission, ledger and trainer claims, on fakes, by a clock by hand.

A runner, a rollout service of two workers and a trainer run at once; environments and completions
take time, fail, hang; each party stops, dies and comes back at random. At every observation the books
that this test keeps by itself must agree with the ledger: what was handed out was stored, failed, gave
its attempt back or is in flight; what was planned is stored, cancelled, running or waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dart_gui import config as config_module
from dart_gui.agent.agent import Agent
from dart_gui.config import AgentConfig, Config
from dart_gui.data.manager import Batch, DataManager
from dart_gui.data.sampler import RoundRobinSampler
from dart_gui.errors import DataError, PolicyError
from dart_gui.runner.fakes import (
    InlineExecutor,
    ManualClock,
    ScriptedCluster,
    ScriptedEnv,
    completion,
)
from dart_gui.runner.scheduler import STOP_S, Scheduler
from dart_gui.types import Completion, PlannedEpisode, SamplingParams, StopReason, Task, Trajectory

RUN_ID = "r1"
MAX_ATTEMPTS = 2
REPLIES = ("Thought: Click OK.\nAction: click(start_box='(57,103)')", "no action at all")


@dataclass(frozen=True, slots=True)
class Pace:
    """Of a task: model calls of an episode, seconds of each action."""

    num_steps: int
    action_s: float


PACES = {"mix/fast": Pace(1, 0.25), "mix/slow": Pace(6, 2.0)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Probabilities, per environment operation or model call."""

    env_breaks: float = 0.0
    env_hangs: float = 0.0
    call_fails: float = 0.0
    unreadable: float = 0.0


class PacedEnv(ScriptedEnv):
    """Takes its time, and breaks or hangs by chance."""

    def __init__(self, clock: ManualClock, rng: random.Random, faults: Faults) -> None:
        super().__init__(reward=float(rng.random() < 0.5))
        self.clock, self.rng, self.faults = clock, rng, faults
        self.action_s = 0.1

    async def reset(self, task: Task) -> Any:
        pace = PACES[task.task_id]
        self.terminate_after, self.action_s = pace.num_steps, pace.action_s
        return await super().reset(task)

    async def _reach(self, place: str) -> None:
        await self.clock.sleep(self.action_s * self.rng.uniform(0.5, 1.5))
        draw = self.rng.random()
        self.breaks_at = place if draw < self.faults.env_breaks else ""
        self.hangs_at = place if draw > 1.0 - self.faults.env_hangs else ""
        await super()._reach(place)


class Service:
    """A rollout service: workers that take the newest weights one after another."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.versions = [0, 0]
        self.is_up = True

    async def complete(
        self,
        messages: list[dict[str, Any]],
        images: Mapping[str, bytes],
        sampling: SamplingParams,
        *,
        trajectory_id: str,
    ) -> Completion:
        rng = self.world.rng
        await self.world.clock.sleep(rng.uniform(0.05, 0.5))
        if not self.is_up or rng.random() < self.world.faults.call_fails:
            raise PolicyError("the worker died")
        return completion(
            REPLIES[rng.random() < self.world.faults.unreadable],
            sampling,
            image_hashes=list(images),
            policy_version=rng.choice(self.versions),
        )

    async def served_version(self) -> int:
        if not self.is_up:
            raise PolicyError("nobody listens")
        return min(self.versions)

    async def keep_up(self) -> None:
        while True:
            for index, version in enumerate(self.versions):
                newest = self.world.trainer_data.latest_version() or 0
                if self.is_up and version < newest:
                    await self.world.clock.sleep(0.5)
                    self.versions[index] = newest
            await self.world.clock.sleep(0.5)


@dataclass(slots=True)
class Books:
    """What the runner was given and gave back, counted without looking into the ledger."""

    running: dict[str, PlannedEpisode] = field(default_factory=dict)
    planned_at_step: dict[str, int] = field(default_factory=dict)  # group -> claims before it
    task_of: dict[str, str] = field(default_factory=dict)  # group -> task_id
    stored: dict[str, Trajectory] = field(default_factory=dict)
    failures: Counter[StopReason] = field(default_factory=Counter)
    cancelled: set[str] = field(default_factory=set)
    num_handed: int = 0
    num_returned: int = 0


class RunnerSide:
    """The real data manager, with the books kept; it does nothing any more for a dead runner."""

    def __init__(self, world: World) -> None:
        self.world, self.books = world, world.books
        self.data = world.open_data()
        self.is_alive = True

    def _check_alive(self) -> None:
        if not self.is_alive:
            raise DataError("this runner was killed")

    def recover(self) -> int:
        self._check_alive()
        num_returned = self.data.recover()
        assert num_returned == len(self.books.running)
        self.books.num_returned += num_returned
        self.books.running.clear()
        return num_returned

    def next_episode(self, served_version: int) -> PlannedEpisode | None:
        self._check_alive()
        planned = self.data.next_episode(served_version)
        if planned is not None:
            assert planned.episode_id not in {*self.books.running, *self.books.stored}
            self.books.num_handed += 1
            self.books.running[planned.episode_id] = planned
            self.books.task_of[planned.group_id] = planned.task.task_id
            self.books.planned_at_step.setdefault(planned.group_id, self.world.train_step)
        return planned

    def store(self, trajectory: Trajectory, images: Mapping[str, bytes]) -> None:
        self._check_alive()
        self.data.store(trajectory, images)
        del self.books.running[trajectory.trajectory_id]
        self.books.stored[trajectory.trajectory_id] = trajectory

    def fail(self, episode: PlannedEpisode, reason: StopReason, message: str) -> None:
        self._check_alive()
        self.data.fail(episode, reason, message)
        del self.books.running[episode.episode_id]
        self.books.failures[reason] += 1
        if episode.attempt == MAX_ATTEMPTS:
            self.books.cancelled.add(episode.episode_id)


class World:
    """Everything, on one clock. To be used inside a running event loop."""

    def __init__(
        self, folder: Path, agent: Agent, *, seed: int, config: Config, faults: Faults
    ) -> None:
        self.folder, self.agent, self.config, self.faults = folder, agent, config, faults
        self.rng = random.Random(seed)
        self.seed = seed
        self.clock = ManualClock()
        self.books = Books()
        self.trained: dict[str, int] = {}  # trajectory -> train step, of the claims that stand
        self.claimed_at: dict[str, int] = {}  # group -> claims before it
        self.step_of: dict[int, int] = {}  # policy version -> train step that made it
        self.train_step = self.saved_step = 0
        self.num_batches_back = 0
        self.num_back: Counter[str] = Counter()  # group -> batches that came back since its plan
        self.trainer_data = self.open_data()
        self.service = Service(self)

    def open_data(self) -> DataManager:
        return DataManager(
            f"sqlite:///{self.folder}/ledger.sqlite",
            str(self.folder / "blobs"),
            run_id=RUN_ID,
            config=self.config.data,
            curation=self.config.curation,
            groups_per_step=self.config.train.groups_per_step,
            sampler=RoundRobinSampler(list(PACES), seed=self.seed, train_seed=lambda rng: 1),
            max_attempts=MAX_ATTEMPTS,
            clock=self.clock.now,
        )

    async def __aenter__(self) -> World:
        self.trainer = asyncio.create_task(self._train())
        self.rollout = asyncio.create_task(self.service.keep_up())
        self.start_runner()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_runner()
        for task in (self.trainer, self.rollout):
            task.cancel()
        await asyncio.gather(self.trainer, self.rollout, return_exceptions=True)
        self.trainer_data.close()

    # --- the parties ---------------------------------------------------------------------------

    def start_runner(self) -> None:
        self.side = RunnerSide(self)
        self.stop = asyncio.Event()
        scheduler = Scheduler(
            data=self.side,
            cluster=ScriptedCluster(
                lambda: PacedEnv(self.clock, self.rng, self.faults),
                num_envs=self.config.runner.num_slots,
            ),
            policy=self.service,
            agent=self.agent,
            config=self.config,
            run_id=RUN_ID,
            metrics=_NoMetrics(),  # type: ignore[arg-type]
            clock=self.clock,
            executor=InlineExecutor(),
        )
        self.runner = asyncio.create_task(scheduler.run(self.stop))

    async def stop_runner(self) -> None:
        """SIGTERM: what is under way goes back to the plan."""
        self.stop.set()
        await self.clock.advance(STOP_S + 1.0)
        await self.runner
        self.side.data.close()
        assert self.books.running == {}

    async def kill_runner(self) -> None:
        """SIGKILL: the ledger hears nothing more of it."""
        self.side.is_alive = False
        self.runner.cancel()
        await self.clock.advance(STOP_S + 1.0)
        with contextlib.suppress(asyncio.CancelledError, DataError):
            await self.runner
        self.side.data.close()

    async def kill_trainer(self) -> None:
        self.trainer.cancel()
        await asyncio.gather(self.trainer, return_exceptions=True)
        self.trainer_data.close()
        self.trainer_data = self.open_data()
        self.trainer = asyncio.create_task(self._train())

    async def _train(self) -> None:
        """As ``TrainLoop`` does: restore, then claim, train, publish, save now and then."""
        data = self.trainer_data
        found = data.latest_checkpoint()
        self.train_step = self.saved_step = found.train_step if found else 0
        num_back = data.resume_from(self.saved_step) // self.config.train.groups_per_step
        self.num_batches_back += num_back
        self.num_back.update(dict.fromkeys(self.books.task_of, num_back))
        self.trained = {key: at for key, at in self.trained.items() if at <= self.saved_step}
        self._publish()
        while True:
            batch = data.claim_batch(self.train_step + 1)
            if batch is None:
                await self.clock.sleep(0.5)
                continue
            self._check_batch(batch)
            self.train_step += 1
            await self.clock.sleep(self.rng.uniform(0.5, 2.0))
            self._publish()
            if self.rng.random() < 0.5:
                data.acknowledge(self.train_step, f"/c/{self.train_step}")
                self.saved_step = self.train_step

    def _publish(self) -> None:
        weights = self.trainer_data.publish_version(self.train_step, f"/w/{self.train_step}")
        assert weights.policy_version not in self.step_of, "a policy version never repeats"
        self.step_of[weights.policy_version] = self.train_step

    def _check_batch(self, batch: Batch) -> None:
        assert len(batch.groups) == self.config.train.groups_per_step
        assert batch.staleness_max == max(item.staleness for item in batch.trajectories)
        for group in batch.groups:
            self.claimed_at[group.group_id] = self.train_step
            # Steps that a crash undid lie on the way back, and again before it on the way forward.
            bound = self.config.data.max_staleness + 2 * self.num_back[group.group_id]
            for item in group.trajectories:
                record = item.trajectory
                assert record == self.books.stored[record.trajectory_id]
                assert record.trajectory_id not in self.trained, "trained twice"
                self.trained[record.trajectory_id] = batch.train_step
                assert item.staleness <= bound
                # By this test's own books: train steps between these weights and those.
                assert self.train_step - self.step_of[record.version_min] <= item.staleness

    # --- what must hold at every moment --------------------------------------------------------

    def check(self) -> None:
        if self.runner.done() and self.side.is_alive and not self.stop.is_set():
            self.runner.result()
        if self.trainer.done():
            self.trainer.result()
        books, counts = self.books, self.trainer_data.counts()
        episodes, groups = counts["episodes"], counts["groups"]
        assert isinstance(episodes, dict)
        assert isinstance(groups, dict)
        assert books.num_handed == (
            len(books.stored) + books.failures.total() + books.num_returned + len(books.running)
        )
        num_planned = self.config.data.group_size * sum(groups.values())
        assert num_planned == sum(episodes.values())
        assert len(books.task_of) * self.config.data.group_size == num_planned
        assert episodes["stored"] == len(books.stored) == len(self.trainer_data.trajectories())
        assert episodes["cancelled"] == len(books.cancelled)
        assert episodes["running"] == len(books.running)
        failures = {reason.value: number for reason, number in books.failures.items()}
        if books.num_returned:
            failures["interrupted"] = books.num_returned
        assert counts["failures"] == failures
        # (S + 1) G, and the groups that came back with a crash, for which nobody had kept places.
        num_batches = self.config.data.max_staleness + 1 + self.num_batches_back
        assert counts["in_system"] <= num_batches * self.config.train.groups_per_step


class _NoMetrics:
    def log(self, event: str, **values: Any) -> bool:
        return True


def make_config(*, max_staleness: int, groups_per_step: int, group_size: int, **curation: Any):
    return config_module.from_dict(
        {
            "runner": {"num_slots": 6, "max_steps": 8, "episode_timeout_s": 60},
            "data": {"max_staleness": max_staleness, "group_size": group_size},
            "train": {"groups_per_step": groups_per_step},
            "curation": curation,
        },
        source="test",
    )


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    model_dir = tmp_path_factory.mktemp("model")
    (model_dir / "preprocessor_config.json").write_text("{}")
    return Agent(model_dir, AgentConfig())


EVENTS = (
    *("time passes",) * 4,
    "runner stops",
    "runner dies",
    "trainer dies",
    "service goes",
    "service comes back",
    "service forgets weights",
)
schedules = st.lists(st.tuples(st.sampled_from(EVENTS), st.floats(0.0, 10.0)), max_size=8)


async def happen(world: World, event: str) -> None:
    match event:
        case "runner stops":
            await world.stop_runner()
            world.check()
            world.start_runner()
        case "runner dies":
            await world.kill_runner()
            world.check()
            world.start_runner()
        case "trainer dies":
            await world.kill_trainer()
        case "service goes":
            world.service.is_up = False
        case "service comes back":
            world.service.is_up = True
        case "service forgets weights":
            world.service.versions = [version // 2 for version in world.service.versions]


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 10_000),
    max_staleness=st.integers(0, 2),
    groups_per_step=st.integers(1, 2),
    schedule=schedules,
)
def test_what_goes_in_comes_out_is_cancelled_or_is_in_flight(
    agent: Agent,
    seed: int,
    max_staleness: int,
    groups_per_step: int,
    schedule: list[tuple[str, float]],
) -> None:
    faults = Faults(env_breaks=0.05, env_hangs=0.005, call_fails=0.03, unreadable=0.05)

    async def scenario(folder: str) -> None:
        config = make_config(
            max_staleness=max_staleness, groups_per_step=groups_per_step, group_size=3
        )
        world = World(Path(folder), agent, seed=seed, config=config, faults=faults)
        async with world:
            for event, seconds in schedule:
                await happen(world, event)
                for _ in range(3):
                    await world.clock.advance(seconds / 3)
                    world.check()
            # Where the faults end, training goes on.
            world.faults, world.service.is_up = Faults(), True
            step = world.train_step
            for _ in range(60):
                await world.clock.advance(5.0)
                world.check()
                if world.train_step >= step + 2:
                    break
            assert world.train_step >= step + 2
        world_is_at_rest(world)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scenario(folder))


def world_is_at_rest(world: World) -> None:
    """After an orderly end nothing is in flight: all of it waits, is stored or is cancelled."""
    assert world.books.running == {}
    with world.open_data() as data:
        episodes = data.counts()["episodes"]
    assert isinstance(episodes, dict)
    assert episodes["running"] == 0
    assert episodes["planned"] == sum(episodes.values()) - len(world.books.stored) - len(
        world.books.cancelled
    )


@pytest.mark.parametrize("seed", [0])
def test_slow_tasks_do_not_starve(agent: Agent, tmp_path: Path, seed: int) -> None:
    """Trained and dispatched episodes have the same distribution of lengths, up to those in flight.

    With D episodes dispatched, T of them trained and none dropped, D - T are in the system, which
    admission bounds by B = (S + 1) G groups of n episodes. The shares of any class c are T_c / T and
    D_c / D with D_c = T_c + I_c and sum I_c = D - T, so their distance in total variation is at most
    (D - T) / D <= B n / D; that bound vanishes as training goes on. A scheduler that trains whatever
    is ready first, and drops what grew stale, stays away from it: an episode of a slow task here
    takes 40 times as long as one of a fast task. And no group waits more than S claims for its own.
    """
    max_staleness, groups_per_step, group_size, num_steps = 2, 2, 3, 30
    config = make_config(
        max_staleness=max_staleness,
        groups_per_step=groups_per_step,
        group_size=group_size,
        skip_zero_variance=False,
    )

    async def scenario() -> World:
        world = World(tmp_path, agent, seed=seed, config=config, faults=Faults())
        async with world:
            while world.train_step < num_steps:
                await world.clock.advance(10.0)
                world.check()
        return world

    world = asyncio.run(scenario())
    dispatched = Counter(
        PACES[task].num_steps for task in world.books.task_of.values() for _ in range(group_size)
    )
    trained = Counter(len(world.books.stored[key].steps) for key in world.trained)
    assert set(dispatched) == set(trained) == {1, 6}
    bound = (max_staleness + 1) * groups_per_step * group_size / dispatched.total()
    assert bound < 0.1
    assert total_variation(trained, dispatched) <= bound
    waits = [at - world.books.planned_at_step[group] for group, at in world.claimed_at.items()]
    assert max(waits) <= max_staleness


def total_variation(left: Counter[int], right: Counter[int]) -> float:
    """Half the sum of the differences of the shares.

    >>> total_variation(Counter({1: 1, 2: 1}), Counter({1: 3, 2: 1}))
    0.25
    """
    keys = {*left, *right}
    return 0.5 * sum(abs(left[k] / left.total() - right[k] / right.total()) for k in keys)
