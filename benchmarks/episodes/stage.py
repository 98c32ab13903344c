"""The stage on which the scheduler plays: shipped fakes, and a policy that answers after a while."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dart_gui.config import Config, from_dict
from dart_gui.data.manager import DataManager
from dart_gui.data.sampler import RoundRobinSampler
from dart_gui.env.suites import train_seed
from dart_gui.runner.fakes import completion
from dart_gui.types import Completion, PlannedEpisode, SamplingParams, StopReason, Task, Trajectory

REPLY = "Thought: The button.\nAction: click(start_box='(80,120)')"
TASK = "miniwob/click-test"


class SlowPolicy:
    """Gives one reply to every prompt: at first only when ``num_episodes`` prompts wait for it at
    the same moment, from then on after ``answer_s`` seconds, give or take a half."""

    def __init__(self, num_episodes: int, answer_s: float) -> None:
        self._num_episodes = num_episodes
        self._answer_s = answer_s
        self._rng = random.Random(0)
        self._num_waiting = 0
        self.all_wait = asyncio.Event()
        self.most_waiting = 0
        self.num_answers = 0

    async def complete(
        self,
        messages: list[dict[str, Any]],
        images: Mapping[str, bytes],
        sampling: SamplingParams,
        *,
        trajectory_id: str,
    ) -> Completion:
        self._num_waiting += 1
        self.most_waiting = max(self.most_waiting, self._num_waiting)
        if self._num_waiting >= self._num_episodes:
            self.all_wait.set()
        try:
            await self.all_wait.wait()
            await asyncio.sleep(self._answer_s * self._rng.uniform(0.5, 1.5))
        finally:
            self._num_waiting -= 1
        self.num_answers += 1
        return completion(REPLY, sampling, image_hashes=list(images))

    async def served_version(self) -> int:
        return 0


class Endless:
    """The runner's side of the data manager without a ledger: a plan without end, which forgets."""

    def __init__(self, group_size: int) -> None:
        self._planned = self._plan(group_size)
        self.num_stored = 0
        self.num_failed = 0

    def recover(self) -> int:
        return 0

    def next_episode(self, served_version: int) -> PlannedEpisode | None:
        return next(self._planned)

    def store(self, trajectory: Trajectory, images: Mapping[str, bytes]) -> None:
        self.num_stored += 1

    def fail(self, episode: PlannedEpisode, reason: StopReason, message: str) -> None:
        self.num_failed += 1

    @staticmethod
    def _plan(group_size: int) -> Iterator[PlannedEpisode]:
        number = 0
        while True:
            group, member = divmod(number, group_size)
            yield PlannedEpisode(
                episode_id=f"g{group:06d}-{member:02d}",
                group_id=f"g{group:06d}",
                task=Task(task_id=TASK, seed=group),
                attempt=1,
                seed=number,
            )
            number += 1


class Counting:
    """A data manager, with a count of what was stored through it."""

    def __init__(self, data: DataManager) -> None:
        self._data = data
        self.num_stored = 0
        self.num_failed = 0

    def recover(self) -> int:
        return self._data.recover()

    def next_episode(self, served_version: int) -> PlannedEpisode | None:
        return self._data.next_episode(served_version)

    def store(self, trajectory: Trajectory, images: Mapping[str, bytes]) -> None:
        self._data.store(trajectory, images)
        self.num_stored += 1

    def fail(self, episode: PlannedEpisode, reason: StopReason, message: str) -> None:
        self._data.fail(episode, reason, message)
        self.num_failed += 1


def make_config(num_episodes: int, num_steps: int) -> Config:
    """A thousand groups may be open: there is no trainer that would take them away."""
    return from_dict(
        {
            "env": {"num_envs": num_episodes},
            "runner": {
                "num_slots": num_episodes,
                "max_steps": num_steps,
                "episode_timeout_s": 3600.0,
            },
            "data": {"group_size": 8, "max_staleness": 1000},
            "train": {"groups_per_step": 1000},
        },
        source="benchmarks/episodes",
    )


def plain_model_folder(model: Path, folder: Path) -> Path:
    """The size limits of ``model`` without its transform of the screenshot, which is the tiny
    agent's own affair."""
    folder.mkdir(parents=True)
    shutil.copy(model / "preprocessor_config.json", folder)
    return folder


def open_ledger(folder: Path, config: Config) -> DataManager:
    sampler = RoundRobinSampler([TASK], seed=0, train_seed=train_seed)
    return DataManager.open(folder, config, sampler=sampler)
