"""Success rate on held-out task instances, with its uncertainty."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dart_gui.errors import ConfigError
from dart_gui.runner.clock import Clock
from dart_gui.runner.episode import Episode, EpisodeLimits, run_leased_episode
from dart_gui.types import StopReason, Task

if TYPE_CHECKING:
    from dart_gui.agent.agent import Agent
    from dart_gui.env.protocol import EnvCluster
    from dart_gui.runner.policy import Policy

RETRY_S = 1.0  # before an instance that the infrastructure failed is tried again
_Z_95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class SuccessRate:
    """A proportion with its Wilson 95 % interval; of no episodes it is unknown: None."""

    num_episodes: int
    num_successes: int
    rate: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, num_successes: int, num_episodes: int) -> SuccessRate:
        if num_episodes == 0:
            return cls(num_episodes=0, num_successes=0, rate=None, low=None, high=None)
        low, high = wilson_interval(num_successes, num_episodes)
        return cls(
            num_episodes=num_episodes,
            num_successes=num_successes,
            rate=num_successes / num_episodes,
            low=low,
            high=high,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """Of one task, or of all. Means are over the evaluated episodes; None where there are none."""

    success: SuccessRate
    mean_reward: float | None
    mean_steps: float | None
    stop_reasons: dict[str, int]
    num_failed: int  # instances that the infrastructure failed to the last attempt: in no rate
    failures: dict[str, int]  # their last reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    overall: TaskResult
    by_task: dict[str, TaskResult]
    temperature: float
    version_min: int | None
    version_max: int | None
    num_retries: int
    wall_s: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalProgress:
    num_done: int
    num_total: int
    num_successes: int
    num_failed: int


def wilson_interval(num_successes: int, num_episodes: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson, 1927); valid near 0 and 1 too.

    >>> [round(bound, 4) for bound in wilson_interval(0, 10)]
    [0.0, 0.2775]

    Raises:
        ValueError: not 0 <= num_successes <= num_episodes, or no episodes.
    """
    if not 0 <= num_successes <= num_episodes or num_episodes == 0:
        raise ValueError(f"{num_successes} successes of {num_episodes} episodes is no proportion")
    n, p, z2 = num_episodes, num_successes / num_episodes, _Z_95**2
    center = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z_95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


async def evaluate(
    *,
    tasks: Sequence[str],
    num_episodes: int,
    cluster: EnvCluster,
    policy: Policy,
    agent: Agent,
    limits: EpisodeLimits,
    clock: Clock,
    num_slots: int,
    max_attempts: int,
    eval_seed: Callable[[int], int],
    on_progress: Callable[[EvalProgress], None] = lambda _: None,
) -> EvalResult:
    """Play at least ``num_episodes`` held-out instances, equally many of each task.

    Instance i of a task has the seed ``eval_seed(i)``, and the sampling of its model calls depends
    on the task and i alone, so two policies are compared on the same instances.

    Raises:
        ConfigError: no tasks, or one that does not exist.
    """
    if not tasks:
        raise ConfigError("there is no task to evaluate: name at least one in env.tasks")
    tasks = list(dict.fromkeys(tasks))
    per_task = math.ceil(num_episodes / len(tasks))
    # Task by task within an index, so that an evaluation that is cut short is still balanced.
    plan = [Task(task_id=name, seed=eval_seed(i)) for i in range(per_task) for name in tasks]
    evaluation = _Evaluation(
        cluster=cluster,
        policy=policy,
        agent=agent,
        limits=limits,
        clock=clock,
        max_attempts=max_attempts,
        on_progress=on_progress,
        plan=plan,
    )
    started_at = clock.monotonic()
    await evaluation.run(num_slots)
    return evaluation.result(tasks, wall_s=clock.monotonic() - started_at)


class _Evaluation:
    def __init__(
        self,
        *,
        cluster: EnvCluster,
        policy: Policy,
        agent: Agent,
        limits: EpisodeLimits,
        clock: Clock,
        max_attempts: int,
        on_progress: Callable[[EvalProgress], None],
        plan: Sequence[Task],
    ) -> None:
        self._cluster = cluster
        self._policy = policy
        self._agent = agent
        self._limits = limits
        self._clock = clock
        self._max_attempts = max_attempts
        self._on_progress = on_progress
        self._plan = plan
        self._todo = iter(plan)
        self._num_retries = 0
        self._episodes: list[Episode] = []  # the last attempt at each instance

    async def run(self, num_slots: int) -> None:
        slots = [asyncio.create_task(self._slot()) for _ in range(num_slots)]
        try:
            await asyncio.gather(*slots)
        finally:
            for slot in slots:
                slot.cancel()
            await asyncio.gather(*slots, return_exceptions=True)

    async def _slot(self) -> None:
        for task in self._todo:  # one iterator for all slots
            self._episodes.append(await self._play(task))
            self._on_progress(self._progress())

    async def _play(self, task: Task) -> Episode:
        for attempt in range(1, self._max_attempts + 1):
            episode = await self._attempt(task)
            if episode.evaluation is not None or attempt == self._max_attempts:
                return episode
            self._num_retries += 1
            await self._clock.sleep(RETRY_S * 2 ** (attempt - 1))
        raise ValueError(f"max_attempts is {self._max_attempts}, expected at least 1")

    async def _attempt(self, task: Task) -> Episode:
        return await run_leased_episode(
            task,
            cluster=self._cluster,
            policy=self._policy,
            agent=self._agent,
            limits=self._limits,
            seed=sampling_seed(task),
            clock=self._clock,
            trajectory_id=f"eval/{task.task_id}/{task.seed}",
        )

    def _progress(self) -> EvalProgress:
        return EvalProgress(
            num_done=len(self._episodes),
            num_total=len(self._plan),
            num_successes=sum(episode.succeeded for episode in self._episodes),
            num_failed=sum(episode.evaluation is None for episode in self._episodes),
        )

    def result(self, tasks: Sequence[str], *, wall_s: float) -> EvalResult:
        versions = [
            step.completion.policy_version for episode in self._episodes for step in episode.steps
        ]
        return EvalResult(
            overall=_summary(self._episodes),
            by_task={
                name: _summary([e for e in self._episodes if e.task.task_id == name])
                for name in tasks
            },
            temperature=self._limits.temperature,
            version_min=min(versions, default=None),
            version_max=max(versions, default=None),
            num_retries=self._num_retries,
            wall_s=wall_s,
        )


def sampling_seed(task: Task) -> int:
    """The seed of the sampling on one held-out instance: 63 bits of sha256."""
    digest = hashlib.sha256(f"eval:{task.task_id}:{task.seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _summary(episodes: Sequence[Episode]) -> TaskResult:
    rewards = [e.evaluation.reward for e in episodes if e.evaluation is not None]
    lengths = [len(e.steps) for e in episodes if e.evaluation is not None]
    failed = [e.stop_reason for e in episodes if e.evaluation is None]
    return TaskResult(
        success=SuccessRate.of(sum(e.succeeded for e in episodes), len(rewards)),
        mean_reward=sum(rewards) / len(rewards) if rewards else None,
        mean_steps=sum(lengths) / len(lengths) if lengths else None,
        stop_reasons=_count([e.stop_reason for e in episodes if e.evaluation is not None]),
        num_failed=len(failed),
        failures=_count(failed),
    )


def _count(reasons: Sequence[StopReason]) -> dict[str, int]:
    return {reason.value: count for reason, count in sorted(Counter(reasons).items())}
