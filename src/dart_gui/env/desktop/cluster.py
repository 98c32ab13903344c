"""Desktops as environments to lease."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.env import DesktopEnv, Pace
from dart_gui.env.desktop.pool import DesktopSource
from dart_gui.env.desktop.tasks import TaskSource
from dart_gui.env.protocol import ClusterStats
from dart_gui.types import Task


class MakeEnv(Protocol):
    def __call__(self, client: GuestClient, tasks: TaskSource, *, pace: Pace) -> DesktopEnv: ...


class DesktopCluster:
    """A fresh desktop for each lease, from whoever has some."""

    def __init__(
        self,
        source: DesktopSource,
        tasks: TaskSource,
        *,
        num_envs: int,
        pace: Pace,
        clock: Callable[[], float] = time.monotonic,
        make_env: MakeEnv = DesktopEnv,
    ) -> None:
        self._source = source
        self._tasks = tasks
        self._num_envs = num_envs
        self._pace = pace
        self._clock = clock
        self._make_env = make_env
        self._leased_at: dict[DesktopEnv, float] = {}
        self._num_replaced = 0
        self._busy_s = 0.0

    async def start(self) -> None:
        await self._source.start()

    @asynccontextmanager
    async def lease(self, task: Task | None = None) -> AsyncIterator[DesktopEnv]:
        """A single-use environment on a desktop of its own.

        Raises:
            ConfigError: there is no such task.
            EnvError: no desktop could be had, or the cluster is not running.
        """
        if task is not None:
            self._tasks.check(task.task_id)
        desktop = await self._source.take()
        client = GuestClient(desktop.address, what=f"the desktop {desktop.desktop_id}")
        env = self._make_env(client, self._tasks, pace=self._pace)
        self._leased_at[env] = self._clock()
        try:
            yield env
        finally:
            try:
                await env.close()
                await self._source.give_back(desktop)
            finally:
                self._num_replaced += env.is_broken
                self._busy_s += self._clock() - self._leased_at.pop(env)

    async def close(self) -> None:
        await self._source.close()

    def stats(self) -> ClusterStats:
        running = sum(self._clock() - at for at in self._leased_at.values())
        return ClusterStats(
            num_envs=self._num_envs,
            num_busy=len(self._leased_at),
            num_replaced=self._num_replaced,
            busy_s=self._busy_s + running,
        )
