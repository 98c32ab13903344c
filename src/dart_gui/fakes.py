"""Scripted environments and a clock by hand, which keep the promises of the real ones."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from dart_gui.env.protocol import ClusterStats
from dart_gui.errors import ConfigError, EnvError
from dart_gui.types import Action, CallUser, Evaluation, Finished, Observation, Task

WIDTH, HEIGHT = 160, 210


class FakeClock:
    """Seconds that pass when they are told to."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Raises ``ValueError`` for a step back."""
        if seconds < 0:
            raise ValueError(f"time does not go back, got {seconds} s")
        self._now += seconds

    async def sleep(self, seconds: float) -> None:
        """Pass ``seconds`` at once, and let others run."""
        self.advance(seconds)
        await asyncio.sleep(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeScript:
    """What an environment does with one episode."""

    num_steps: int = 3
    """Actions until the task terminates; a refused action counts for nothing."""
    reward: float = 1.0
    """Of the terminated episode, in [0, 1]; an unfinished one is worth 0."""
    fail_at: Literal["reset", "evaluate"] | int | None = None
    """Where ``EnvError`` comes: a method, or the action of that number, from 1."""


class FakeEnv:
    """One episode by script. Screens differ by task, seed and the actions so far."""

    def __init__(
        self,
        script: EpisodeScript | None = None,
        *,
        knows: Callable[[str], bool] = lambda task_id: True,
    ) -> None:
        self._script = script or EpisodeScript()
        self._knows = knows
        self._task: Task | None = None
        self._broken = False
        self._actions: list[Action] = []
        self.is_closed = False

    @property
    def actions(self) -> Sequence[Action]:
        """What was carried out so far."""
        return tuple(self._actions)

    async def reset(self, task: Task) -> Observation:
        if self._task is not None:
            raise RuntimeError("an environment is single use: lease another one for an episode")
        if not self._knows(task.task_id):
            raise ConfigError(f"there is no task {task.task_id!r}")
        self._task = task
        self._break_if(self._script.fail_at == "reset", "reset")
        return self._observe()

    async def step(self, action: Action) -> Observation:
        self._check("step")
        if self._terminated:
            raise RuntimeError("step() after the task terminated")
        if isinstance(action, Finished | CallUser):
            raise ValueError(f"{action.kind} is for the runner to answer, not for the environment")
        self._break_if(self._script.fail_at == len(self._actions) + 1, "step")
        if refusal := _refusal(action):
            return self._observe(refusal)
        self._actions.append(action)
        return self._observe()

    async def evaluate(self) -> Evaluation:
        self._check("evaluate")
        self._break_if(self._script.fail_at == "evaluate", "evaluate")
        reward = self._script.reward if self._terminated else 0.0
        return Evaluation(reward=reward, success=reward >= 1.0)

    async def close(self) -> None:
        self.is_closed = True

    @property
    def _terminated(self) -> bool:
        return len(self._actions) >= self._script.num_steps

    def _check(self, method: str) -> None:
        if self._broken:
            raise EnvError(f"{method}() on an environment that broke earlier in the episode")
        if self._task is None or self.is_closed:
            raise RuntimeError(f"{method}() before reset() or after close()")

    def _break_if(self, condition: bool, method: str) -> None:
        if condition:
            self._broken = True
            raise EnvError(f"{method}(): the script says that the environment breaks here")

    def _observe(self, action_error: str | None = None) -> Observation:
        assert self._task is not None
        return Observation(
            screenshot=_screen(f"{self._task}{self._actions}"),
            width=WIDTH,
            height=HEIGHT,
            instruction=f"Do {self._task.task_id} of seed {self._task.seed}.",
            terminated=self._terminated,
            action_error=action_error,
        )


class FakeCluster:
    """Environments by script: the n-th lease plays the n-th script, the last one from then on."""

    def __init__(
        self,
        scripts: Sequence[EpisodeScript] = (EpisodeScript(),),
        *,
        num_envs: int = 4,
        clock: Callable[[], float] | None = None,
        knows: Callable[[str], bool] = lambda task_id: True,
    ) -> None:
        self._scripts = scripts
        self._clock = clock or FakeClock()
        self._knows = knows
        self._num_envs = num_envs
        self._free = asyncio.Semaphore(num_envs)
        self._leased_at: dict[FakeEnv, float] = {}
        self._busy_s = 0.0
        self._num_replaced = 0
        self._is_running = False
        self.leased: list[FakeEnv] = []

    async def start(self) -> None:
        self._is_running = True

    @asynccontextmanager
    async def lease(self, task: Task | None = None) -> AsyncIterator[FakeEnv]:
        if not self._is_running:
            raise EnvError("the environment cluster is not running: it was not started, or closed")
        async with self._free:
            script = self._scripts[min(len(self.leased), len(self._scripts) - 1)]
            env = FakeEnv(script, knows=self._knows)
            self.leased.append(env)
            self._leased_at[env] = self._clock()
            try:
                yield env
            finally:
                await env.close()
                self._num_replaced += env._broken
                self._busy_s += self._clock() - self._leased_at.pop(env)

    async def close(self) -> None:
        self._is_running = False

    def stats(self) -> ClusterStats:
        running = sum(self._clock() - at for at in self._leased_at.values())
        return ClusterStats(
            num_envs=self._num_envs,
            num_busy=len(self._leased_at),
            num_replaced=self._num_replaced,
            busy_s=self._busy_s + running,
        )


def _refusal(action: Action) -> str | None:
    """Points outside the screen and keys that no keyboard has, as in the real environments."""
    for name in ("point", "start", "end"):
        point = getattr(action, name, None)
        if point is not None and not (0 <= point.x < WIDTH and 0 <= point.y < HEIGHT):
            return f"the point ({point.x:g}, {point.y:g}) is outside the {WIDTH} x {HEIGHT} screen"
    keys = (*getattr(action, "keys", ()), *filter(None, [getattr(action, "key", None)]))
    unknown = [key for key in keys if "unknown" in key]
    return f"there is no key {unknown[0]!r}" if unknown else None


def _screen(state: str) -> bytes:
    """A PNG in a colour that is a function of ``state``."""
    red, green, blue = hashlib.sha256(state.encode()).digest()[:3]
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (red, green, blue)).save(file, "PNG", compress_level=1)
    return file.getvalue()
