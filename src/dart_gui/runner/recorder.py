"""What an environment showed and when, kept beside an episode for whoever draws or files it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dart_gui.env.protocol import HearsInfeasible
from dart_gui.types import Action, Evaluation, Observation, Task

if TYPE_CHECKING:
    from dart_gui.env.protocol import ClusterStats, Env, EnvCluster


def _never() -> float:
    return 0.0


@dataclass(slots=True)
class Recorder:
    """An environment that remembers what it showed."""

    env: Env
    now: Callable[[], float] = _never
    observations: list[Observation] = field(default_factory=list)  # after the reset, each action
    acted_at: list[float] = field(default_factory=list)  # when the reset, each action began

    async def reset(self, task: Task) -> Observation:
        self.acted_at.append(self.now())
        return self._seen(await self.env.reset(task))

    async def step(self, action: Action) -> Observation:
        self.acted_at.append(self.now())
        return self._seen(await self.env.step(action))

    async def evaluate(self) -> Evaluation:
        return await self.env.evaluate()

    def declare_infeasible(self) -> None:
        if isinstance(self.env, HearsInfeasible):
            self.env.declare_infeasible()

    async def close(self) -> None:
        await self.env.close()

    def _seen(self, observation: Observation) -> Observation:
        self.observations.append(observation)
        return observation


class RecordingCluster:
    """A cluster for one attempt: ``recorder`` is that of its newest lease, None before it."""

    def __init__(self, cluster: EnvCluster, now: Callable[[], float]) -> None:
        self._cluster = cluster
        self._now = now
        self.recorder: Recorder | None = None

    async def start(self) -> None:
        await self._cluster.start()

    @asynccontextmanager
    async def lease(self, task: Task | None = None) -> AsyncIterator[Env]:
        async with self._cluster.lease(task) as env:
            self.recorder = Recorder(env, self._now)
            yield self.recorder

    async def close(self) -> None:
        await self._cluster.close()

    def stats(self) -> ClusterStats:
        return self._cluster.stats()
