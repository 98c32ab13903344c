"""One episode of an OSWorld task."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.env import DesktopEnv, Pace
from dart_gui.env.desktop.tasks import DesktopTask, SetupStep, TaskSource
from dart_gui.env.osworld.downloads import Downloads
from dart_gui.env.osworld.evaluate import EvaluatorSettings, evaluate
from dart_gui.env.osworld.setup import Stage, set_up
from dart_gui.env.osworld.tasks import OsworldTask


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
    ) -> None:
        super().__init__(client, tasks, pace=pace, sleep=sleep)
        self._settings = settings
        self._scratch = Path(tempfile.mkdtemp(prefix="dart-osworld-"))
        self._declared_infeasible = False
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
