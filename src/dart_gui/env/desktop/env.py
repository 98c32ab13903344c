"""One episode on a desktop."""

from __future__ import annotations

import asyncio
import io
import logging
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.setup import evaluate, set_up
from dart_gui.env.desktop.tasks import DesktopTask, SetupStep, TaskSource
from dart_gui.errors import EnvError
from dart_gui.types import Action, CallUser, Evaluation, Finished, Observation, Task, Wait

log = logging.getLogger(__name__)

T = TypeVar("T")
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long the screen is given to react. Seconds."""

    react_s: float = 0.5  # for a first change after an action
    settle_s: float = 0.1  # still for so long is settled
    settle_limit_s: float = 2.0  # an animation never settles: the screenshot is taken then
    wait_s: float = 1.0  # what wait() waits for
    rest_s: float = 0.1  # before an evaluation: no program at work for so long
    rest_limit_s: float = 30.0  # one that always works is no reason not to evaluate


class DesktopEnv:
    """A task on a desktop that was just made. It never terminates on its own: the agent, or a limit,
    ends the episode, and what the desktop then looks like is evaluated."""

    def __init__(
        self,
        client: GuestClient,
        tasks: TaskSource,
        *,
        pace: Pace,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._tasks = tasks
        self._pace = pace
        self._sleep = sleep
        self._task: DesktopTask | None = None
        self._is_closed = False
        self.is_broken = False

    async def reset(self, task: Task) -> Observation:
        if self._task is not None:
            raise RuntimeError("an environment is single use: lease another one for an episode")
        self._task = self._tasks.instantiate(task)
        return await self._guard(self._start(self._task))

    async def step(self, action: Action) -> Observation:
        task = self._check("step")
        if isinstance(action, Finished | CallUser):
            raise ValueError(f"{action.kind} is for the runner to answer, not for the environment")
        return await self._guard(self._act(task, action))

    async def evaluate(self) -> Evaluation:
        task = self._check("evaluate")
        reward = await self._guard(self._score(task))
        return Evaluation(reward=reward, success=reward >= 1.0)

    async def close(self) -> None:
        self._is_closed = True
        await self._client.close()

    async def _start(self, task: DesktopTask) -> Observation:
        await self._set_up(task.config)
        return await self._observe(task)

    async def _set_up(self, steps: Sequence[SetupStep]) -> None:
        await set_up(self._client, steps, sleep=self._sleep)

    async def _score(self, task: DesktopTask) -> float:
        await self._finish(task)
        return await evaluate(self._client, task.evaluator)

    async def _finish(self, task: DesktopTask) -> None:
        """What the newest actions and ``postconfig`` began is done before anything is looked at: on a
        busy machine a program saves its file long after the keys were pressed."""
        await self._rest()
        if task.evaluator.postconfig:
            await self._set_up(task.evaluator.postconfig)
            await self._rest()

    async def _rest(self) -> None:
        limit_s = self._pace.rest_limit_s
        if not await self._client.await_rest(rest_s=self._pace.rest_s, timeout_s=limit_s):
            log.info("evaluated while programs of the desktop were at work for %g s", limit_s)

    async def _act(self, task: DesktopTask, action: Action) -> Observation:
        action_error = await self._client.act(action)
        if isinstance(action, Wait):
            await self._sleep(self._pace.wait_s)
        return await self._observe(task, action_error)

    async def _observe(self, task: DesktopTask, action_error: str | None = None) -> Observation:
        shot = await self._client.screenshot(
            stable_s=self._pace.settle_s,
            react_s=self._pace.react_s,
            timeout_s=self._pace.settle_limit_s,
        )
        width, height = picture_size(shot.png)
        return Observation(
            screenshot=shot.png,
            width=width,
            height=height,
            instruction=task.instruction,
            action_error=action_error,
        )

    async def _guard(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except EnvError:
            self.is_broken = True
            raise

    def _check(self, method: str) -> DesktopTask:
        if self.is_broken:
            raise EnvError(f"{method}() on an environment that broke earlier in the episode")
        if self._task is None or self._is_closed:
            raise RuntimeError(f"{method}() before reset() or after close()")
        return self._task


def picture_size(png: bytes) -> tuple[int, int]:
    """Width and height of a whole PNG.

    Raises:
        EnvError: it is something else, or cut off.
    """
    try:
        if not png.startswith(_PNG):
            raise ValueError(f"it starts with {png[:8]!r}")
        Image.open(io.BytesIO(png)).verify()
        width, height = struct.unpack(">II", png[16:24])
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise EnvError(f"the desktop's screenshot is no PNG: {error}") from None
    return width, height
