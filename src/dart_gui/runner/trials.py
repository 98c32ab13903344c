"""Held-out instances played one after the other in every slot, each until it is evaluated."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dart_gui.runner.clock import Clock
from dart_gui.runner.episode import Episode, EpisodeLimits, run_leased_episode
from dart_gui.runner.recorder import Recorder, RecordingCluster
from dart_gui.types import Task

if TYPE_CHECKING:
    from dart_gui.agent.agent import Agent
    from dart_gui.env.protocol import EnvCluster
    from dart_gui.runner.policy import Policy

RETRY_S = 1.0  # before an instance that the infrastructure failed is tried again


@dataclass(frozen=True, slots=True)
class Trial:
    """One of the independent attempts at an instance."""

    task: Task
    repeat: int = 0  # from 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """The last try of a trial."""

    trial: Trial
    episode: Episode
    recorder: Recorder | None  # None where no environment could be leased
    num_retries: int


def sampling_seed(task: Task, repeat: int = 0) -> int:
    """The seed of the sampling in one attempt at a held-out instance: 63 bits of sha256."""
    name = f"eval:{task.task_id}:{task.seed}" + (f":{repeat}" if repeat else "")
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Players:
    """What plays: shared by all slots."""

    cluster: EnvCluster
    policy: Policy
    agent: Agent
    limits: EpisodeLimits
    clock: Clock
    max_attempts: int  # tries of one trial when the infrastructure fails

    async def play_all(
        self, trials: Sequence[Trial], num_slots: int, on_end: Callable[[Played], Awaitable[None]]
    ) -> None:
        """Play ``trials`` in order, ``num_slots`` at once; ``on_end`` hears of each.

        Raises:
            DartError: what no retry mends; what was under way is given up.
        """
        todo = iter(trials)
        slots = [asyncio.create_task(self._slot(todo, on_end)) for _ in range(num_slots)]
        try:
            await asyncio.gather(*slots)
        finally:
            for slot in slots:
                slot.cancel()
            await asyncio.gather(*slots, return_exceptions=True)

    async def _slot(
        self, todo: Iterator[Trial], on_end: Callable[[Played], Awaitable[None]]
    ) -> None:
        for trial in todo:  # one iterator for all slots
            await on_end(await self._play(trial))

    async def _play(self, trial: Trial) -> Played:
        for attempt in range(1, self.max_attempts + 1):
            cluster = RecordingCluster(self.cluster, self.clock.now)
            episode = await self._attempt(trial, cluster)
            if episode.evaluation is not None or attempt == self.max_attempts:
                return Played(
                    trial=trial,
                    episode=episode,
                    recorder=cluster.recorder,
                    num_retries=attempt - 1,
                )
            await self.clock.sleep(RETRY_S * 2 ** (attempt - 1))
        raise ValueError(f"max_attempts is {self.max_attempts}, expected at least 1")

    async def _attempt(self, trial: Trial, cluster: RecordingCluster) -> Episode:
        task, repeat = trial.task, trial.repeat
        return await run_leased_episode(
            task,
            cluster=cluster,
            policy=self.policy,
            agent=self.agent,
            limits=self.limits,
            seed=sampling_seed(task, repeat),
            clock=self.clock,
            trajectory_id=f"eval/{task.task_id}/{task.seed}" + (f"/{repeat}" if repeat else ""),
        )
