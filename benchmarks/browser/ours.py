"""The child process with our browser cluster: ``python -m benchmarks.browser.ours N TASK...``."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Iterator

from benchmarks.browser.workload import Order, Pipe, Tally, clicks, seeds_of, task_of
from dart_gui.config import EnvConfig
from dart_gui.env.browser.cluster import BrowserCluster
from dart_gui.types import Click, Point, Task


class Side:
    def __init__(self, cluster: BrowserCluster, tasks: list[str], num_envs: int) -> None:
        self._cluster = cluster
        self._tasks = tasks
        self._seeds = [seeds_of(index) for index in range(num_envs)]

    async def run(self, order: Order) -> Tally:
        tally, started = Tally(), time.perf_counter()
        deadline = started + order.run_s
        players = (
            self._play(task_of(index, self._tasks), self._seeds[index], deadline, tally)
            for index in range(order.num_envs)
        )
        await asyncio.gather(*players)
        tally.wall_s = time.perf_counter() - started
        return tally

    async def _play(self, task: str, seeds: Iterator[int], deadline: float, tally: Tally) -> None:
        while time.perf_counter() < deadline:
            await self._episode(task, next(seeds), deadline, tally)

    async def _episode(self, name: str, seed: int, deadline: float, tally: Tally) -> None:
        task = Task(task_id=f"miniwob/{name}", seed=seed)
        async with self._cluster.lease(task) as env:
            await env.reset(task)
            for x, y in clicks(name, seed):
                if time.perf_counter() >= deadline:
                    return
                observation = await env.step(Click(point=Point(x, y)))
                tally.num_steps += 1
                if observation.terminated:
                    break
        tally.num_episodes += 1


def main(num_envs: int, tasks: list[str]) -> None:
    with asyncio.Runner() as runner:
        cluster = BrowserCluster(EnvConfig(num_envs=num_envs))
        runner.run(cluster.start())
        side = Side(cluster, tasks, num_envs)
        try:
            Pipe().serve(lambda order: runner.run(side.run(order)))
        finally:
            runner.run(cluster.close())


if __name__ == "__main__":
    main(int(sys.argv[1]), list(itertools.islice(sys.argv, 2, None)))
