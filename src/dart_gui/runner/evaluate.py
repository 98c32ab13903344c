"""Success rate on held-out task instances, with its uncertainty."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dart_gui.errors import ConfigError
from dart_gui.runner.clock import Clock
from dart_gui.runner.episode import Episode, EpisodeLimits
from dart_gui.runner.trials import Played, Players, Trial
from dart_gui.types import StopReason, Task

if TYPE_CHECKING:
    from dart_gui.agent.agent import Agent
    from dart_gui.env.protocol import EnvCluster
    from dart_gui.runner.policy import Policy

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
class Outcome:
    """How one episode ended. ``reward`` is None exactly where the infrastructure failed."""

    stop_reason: StopReason
    num_steps: int
    reward: float | None
    success: bool

    @classmethod
    def of(cls, episode: Episode) -> Outcome:
        return cls(
            stop_reason=episode.stop_reason,
            num_steps=len(episode.steps),
            reward=episode.evaluation.reward if episode.evaluation else None,
            success=episode.succeeded,
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

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> TaskResult:
        evaluated = [each for each in outcomes if each.reward is not None]
        rewards = [each.reward for each in evaluated if each.reward is not None]
        lengths = [each.num_steps for each in evaluated]
        failed = [each.stop_reason for each in outcomes if each.reward is None]
        return cls(
            success=SuccessRate.of(sum(each.success for each in evaluated), len(evaluated)),
            mean_reward=sum(rewards) / len(rewards) if rewards else None,
            mean_steps=sum(lengths) / len(lengths) if lengths else None,
            stop_reasons=_count([each.stop_reason for each in evaluated]),
            num_failed=len(failed),
            failures=_count(failed),
        )


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


def pass_at_k(num_episodes: int, num_successes: int, k: int) -> float:
    """The chance that at least one of ``k`` attempts at an instance succeeds, unbiased:
    1 - C(n - c, k) / C(n, k) (Chen et al., 2021, arXiv 2107.03374, equation 1).

    >>> pass_at_k(4, 1, 2)
    0.5

    Raises:
        ValueError: not 1 <= k <= num_episodes, or no count of successes.
    """
    if not (1 <= k <= num_episodes and 0 <= num_successes <= num_episodes):
        raise ValueError(f"pass@{k} of {num_successes} successes in {num_episodes} is not defined")
    num_failures = num_episodes - num_successes
    return 1.0 - math.comb(num_failures, k) / math.comb(num_episodes, k)


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
    players = Players(
        cluster=cluster,
        policy=policy,
        agent=agent,
        limits=limits,
        clock=clock,
        max_attempts=max_attempts,
    )
    evaluation = _Evaluation(len(plan), on_progress)
    started_at = clock.monotonic()
    await players.play_all([Trial(task) for task in plan], num_slots, evaluation.ended)
    return evaluation.result(
        tasks, temperature=limits.temperature, wall_s=clock.monotonic() - started_at
    )


class _Evaluation:
    def __init__(self, num_total: int, on_progress: Callable[[EvalProgress], None]) -> None:
        self._num_total = num_total
        self._on_progress = on_progress
        self._num_retries = 0
        self._episodes: list[Episode] = []  # the last try of each instance

    async def ended(self, played: Played) -> None:
        self._num_retries += played.num_retries
        self._episodes.append(played.episode)
        self._on_progress(self._progress())

    def _progress(self) -> EvalProgress:
        return EvalProgress(
            num_done=len(self._episodes),
            num_total=self._num_total,
            num_successes=sum(episode.succeeded for episode in self._episodes),
            num_failed=sum(episode.evaluation is None for episode in self._episodes),
        )

    def result(self, tasks: Sequence[str], *, temperature: float, wall_s: float) -> EvalResult:
        versions = [
            step.completion.policy_version for episode in self._episodes for step in episode.steps
        ]
        return EvalResult(
            overall=_summary(self._episodes),
            by_task={
                name: _summary([e for e in self._episodes if e.task.task_id == name])
                for name in tasks
            },
            temperature=temperature,
            version_min=min(versions, default=None),
            version_max=max(versions, default=None),
            num_retries=self._num_retries,
            wall_s=wall_s,
        )


def _summary(episodes: Sequence[Episode]) -> TaskResult:
    return TaskResult.of([Outcome.of(episode) for episode in episodes])


def _count(reasons: Sequence[StopReason]) -> dict[str, int]:
    return {reason.value: count for reason, count in sorted(Counter(reasons).items())}
