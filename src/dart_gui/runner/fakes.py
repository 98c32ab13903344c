"""Scripted stand-ins for what the runner meets: time, a policy, an environment, a plan."""

from __future__ import annotations

import asyncio
import heapq
import io
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from dart_gui.env.protocol import ClusterStats, Env
from dart_gui.errors import EnvError
from dart_gui.types import (
    Action,
    Completion,
    Evaluation,
    Observation,
    PlannedEpisode,
    SamplingParams,
    StopReason,
    Task,
    Trajectory,
)

WIDTH, HEIGHT = 160, 210
_SETTLE_ROUNDS = 30  # turns of the event loop in which everything that can run has run


class ManualClock:
    """Time that stands still until ``advance``; sleepers wake in the order of their deadlines.
    ``set`` sets the wall clock, as an administrator does; nothing that waits notices.
    """

    def __init__(self, now: float = 1_000.0) -> None:
        self._now = now
        self._ahead_s = 0.0  # of the wall clock
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def now(self) -> float:
        return self._now + self._ahead_s

    def monotonic(self) -> float:
        return self._now

    def set(self, now: float) -> None:
        self._ahead_s = now - self._now

    async def sleep(self, seconds: float) -> None:
        wake = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), wake))
        await wake

    async def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass, and whatever waits for them happen."""
        target = self._now + seconds
        await settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            self._now, _, wake = heapq.heappop(self._sleepers)
            if not wake.done():
                wake.set_result(None)
                await settle()
        self._now = target


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(_SETTLE_ROUNDS):
        await asyncio.sleep(0)


class InlineExecutor(Executor):
    """Runs a call at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))  # what it raises reaches the caller as it is
        return future


class Hang(Exception):
    """In a script: never answer."""


@dataclass(slots=True, kw_only=True)
class ScriptedPolicy:
    """Answers with the replies of a script, the last one again and again; raises its exceptions."""

    replies: list[str | Exception]
    policy_version: int | Exception = 0
    finish_reason: str = "stop"
    calls: list[tuple[list[dict[str, Any]], SamplingParams, str]] = field(default_factory=list)

    async def complete(
        self,
        messages: list[dict[str, Any]],
        images: Mapping[str, bytes],
        sampling: SamplingParams,
        *,
        trajectory_id: str,
    ) -> Completion:
        reply = self.replies[min(len(self.calls), len(self.replies) - 1)]
        self.calls.append((messages, sampling, trajectory_id))
        await asyncio.sleep(0)
        if isinstance(reply, Hang):
            await asyncio.get_running_loop().create_future()
        if isinstance(reply, Exception):
            raise reply
        return completion(
            reply,
            sampling,
            image_hashes=list(images),
            policy_version=await self.served_version(),
            finish_reason=self.finish_reason,
        )

    async def served_version(self) -> int:
        if isinstance(self.policy_version, Exception):
            raise self.policy_version
        return self.policy_version


def completion(
    text: str,
    sampling: SamplingParams,
    *,
    image_hashes: list[str] | None = None,
    policy_version: int = 0,
    finish_reason: str = "stop",
) -> Completion:
    """A completion of two made-up tokens."""
    return Completion(
        text=text,
        prompt_ids=[1, 2, 3],
        response_ids=[4, 5],
        rollout_logprobs=[-0.5, -0.25],
        entropies=[0.5, 0.25],
        image_hashes=image_hashes or [],
        finish_reason="length" if finish_reason == "length" else "stop",
        policy_version=policy_version,
        worker_id="fake",
        sampling=sampling,
    )


@dataclass(slots=True, kw_only=True)
class ScriptedEnv:
    """Ends after a number of actions with a reward; breaks or hangs where it is told to."""

    terminate_after: int | None = None  # actions
    reward: float = 1.0
    action_errors: Mapping[int, str] = field(default_factory=dict)  # by number of the action
    breaks_at: str = ""  # "reset", "step" or "evaluate"
    hangs_at: str = ""
    actions: list[Action] = field(default_factory=list)
    num_closed: int = 0

    async def reset(self, task: Task) -> Observation:
        await self._reach("reset")
        return self._observe()

    async def step(self, action: Action) -> Observation:
        await self._reach("step")
        self.actions.append(action)
        return self._observe()

    async def evaluate(self) -> Evaluation:
        await self._reach("evaluate")
        return Evaluation(reward=self.reward, success=self.reward >= 1.0)

    async def close(self) -> None:
        self.num_closed += 1

    async def _reach(self, place: str) -> None:
        await asyncio.sleep(0)
        if place == self.hangs_at:
            await asyncio.get_running_loop().create_future()
        if place == self.breaks_at:
            raise EnvError(f"the page crashed in {place}")

    def _observe(self) -> Observation:
        count = len(self.actions)
        return Observation(
            screenshot=screenshot(count),
            width=WIDTH,
            height=HEIGHT,
            instruction="Click OK.",
            terminated=self.terminate_after is not None and count >= self.terminate_after,
            action_error=self.action_errors.get(count - 1),
        )


def screenshot(number: int) -> bytes:
    """A plain PNG of a colour of its own."""
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (number % 256, 128, 64)).save(buffer, "PNG")
    return buffer.getvalue()


class ScriptedCluster:
    """Leases the environments that ``make`` gives; counts them."""

    def __init__(self, make: Callable[[], Env], *, num_envs: int) -> None:
        self._make = make
        self._free = asyncio.Semaphore(num_envs)
        self._num_envs = num_envs
        self.num_busy = 0
        self.num_leases = 0
        self.breaks_on_return = False

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    @asynccontextmanager
    async def lease(self, task: Task | None = None) -> AsyncIterator[Env]:
        async with self._free:
            env = self._make()
            self.num_busy += 1
            self.num_leases += 1
            try:
                yield env
            finally:
                self.num_busy -= 1
                await env.close()
            if self.breaks_on_return:
                raise EnvError("the page crashed when it was given back")

    def stats(self) -> ClusterStats:
        return ClusterStats(
            num_envs=self._num_envs, num_busy=self.num_busy, num_replaced=0, busy_s=0.0
        )


class PlanOnly:
    """The runner's side of the data manager, in memory: a plan that is worked off."""

    def __init__(self, episodes: Iterable[PlannedEpisode], *, max_attempts: int = 3) -> None:
        self.planned = list(episodes)
        self.running: dict[str, PlannedEpisode] = {}
        self.stored: dict[str, Trajectory] = {}
        self.images: dict[str, bytes] = {}
        self.cancelled: dict[str, StopReason] = {}
        self.failures: list[tuple[str, int, StopReason]] = []
        self.asked: list[int] = []
        self._max_attempts = max_attempts

    def recover(self) -> int:
        returned = list(self.running.values())
        self.planned = returned + self.planned
        self.running.clear()
        return len(returned)

    def next_episode(self, served_version: int) -> PlannedEpisode | None:
        self.asked.append(served_version)
        if not self.planned:
            return None
        episode = self.planned.pop(0)
        self.running[episode.episode_id] = episode
        return episode

    def store(self, trajectory: Trajectory, images: Mapping[str, bytes]) -> None:
        del self.running[trajectory.trajectory_id]
        self.stored[trajectory.trajectory_id] = trajectory
        self.images |= images

    def fail(self, episode: PlannedEpisode, reason: StopReason, message: str) -> None:
        del self.running[episode.episode_id]
        self.failures.append((episode.episode_id, episode.attempt, reason))
        if episode.attempt >= self._max_attempts:
            self.cancelled[episode.episode_id] = reason
        else:
            self.planned.append(
                PlannedEpisode(
                    episode_id=episode.episode_id,
                    group_id=episode.group_id,
                    task=episode.task,
                    attempt=episode.attempt + 1,
                    seed=episode.seed + 1,
                )
            )


def plan(num_episodes: int) -> list[PlannedEpisode]:
    """Episodes of one group: e0, e1, ..."""
    return [
        PlannedEpisode(
            episode_id=f"e{index}",
            group_id="g0",
            task=Task(task_id="miniwob/click-test", seed=7),
            attempt=1,
            seed=1_000 * index,
        )
        for index in range(num_episodes)
    ]
