"""One episode of an OSWorld task."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.env import DesktopEnv, Pace
from dart_gui.env.desktop.tasks import DesktopTask, SetupStep, TaskSource
from dart_gui.env.osworld import chrome, pythons
from dart_gui.env.osworld.downloads import Downloads
from dart_gui.env.osworld.evaluate import EvaluatorSettings, evaluate
from dart_gui.env.osworld.setup import Stage, set_up
from dart_gui.env.osworld.tasks import OsworldTask, getters_of
from dart_gui.types import Observation

START_REST_S = 1.0
"""A browser that starts pauses between its processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OsworldSettings:
    folder: Path  # of the tasks; paths in them start from the folder around it
    downloads: Downloads
    evaluator: EvaluatorSettings
    password: str


class OsworldEnv(DesktopEnv):
    """A desktop with a scratch folder of this trajectory, and OSWorld's own evaluation.

    As published, an infeasible task is solved by who says so and by nobody else, and saying so of
    another task is worth 0.
    """

    def __init__(
        self,
        client: GuestClient,
        tasks: TaskSource,
        *,
        pace: Pace,
        settings: OsworldSettings,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(client, tasks, pace=pace, sleep=sleep)
        self._settings = settings
        self._scratch = Path(tempfile.mkdtemp(prefix="dart-osworld-"))
        self._declared_infeasible = False
        self._clock = clock
        self._acted_at = clock()
        self._stage = Stage(
            client=client,
            scratch=self._scratch,
            downloads=settings.downloads,
            folder=settings.folder.parent,
            password=settings.password,
            sleep=sleep,
        )

    def declare_infeasible(self) -> None:
        self._declared_infeasible = True

    async def close(self) -> None:
        await super().close()
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)

    async def _set_up(self, steps: Sequence[SetupStep]) -> None:
        await set_up(self._stage, steps)

    async def _observe(self, task: DesktopTask, action_error: str | None = None) -> Observation:
        observation = await super()._observe(task, action_error)
        self._acted_at = self._clock()
        return observation

    async def _start(self, task: DesktopTask) -> Observation:
        # Of postconfig too: what it lacks would cost the whole episode.
        steps = (*task.config, *task.evaluator.postconfig)
        await pythons.require(self._client, pythons.imports_of(steps))
        await self._set_up(task.config)
        # Set-up goes on as soon as a program is started; OSWorld waits 60 s here.
        await self._client.await_rest(rest_s=START_REST_S, timeout_s=self._pace.rest_limit_s)
        return await self._observe(task)

    async def _finish(self, task: DesktopTask) -> None:
        assert isinstance(task, OsworldTask)
        kinds = {getter["type"] for getter in getters_of({"evaluator": task.published})}
        if task.evaluator.postconfig:
            # It ends Chrome, which writes everything then but cookies: who has those is ended with it.
            kinds &= {"cookie_data"}
        wait_s = max((chrome.PROFILE_S.get(kind, 0.0) for kind in kinds), default=0.0)
        await self._sleep(max(0.0, self._acted_at + wait_s - self._clock()))
        await super()._finish(task)

    async def _score(self, task: DesktopTask) -> float:
        assert isinstance(task, OsworldTask)
        if task.is_infeasible or self._declared_infeasible:
            return float(task.is_infeasible and self._declared_infeasible)
        await self._finish(task)
        return await evaluate(
            self._client,
            task,
            scratch=self._scratch,
            downloads=self._settings.downloads,
            settings=self._settings.evaluator,
        )
