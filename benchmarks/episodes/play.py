"""One measurement, in a process of its own: ``python -m benchmarks.episodes.play SETTINGS``."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.episodes.stage import (
    TASK,
    Counting,
    Endless,
    SlowPolicy,
    make_config,
    open_ledger,
    plain_model_folder,
)
from benchmarks.processes import all_processes, pss_bytes
from dart_gui.agent.agent import Agent
from dart_gui.config import Config
from dart_gui.fakes import EpisodeScript, FakeCluster, FakeEnv
from dart_gui.metrics import MetricsWriter
from dart_gui.runner.clock import SystemClock
from dart_gui.runner.fakes import completion
from dart_gui.runner.scheduler import Scheduler
from dart_gui.types import Click, Point, SamplingParams, Task

LOOK_S = 0.05
PATIENCE_S = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    num_episodes: int  # at once
    num_steps: int  # of each
    answer_s: float  # of the policy
    num_ended: int  # episodes that end while it is measured
    with_ledger: bool
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    most_at_once: int  # episodes that waited for the policy at the same moment
    num_stored: int
    num_failed: int
    num_steps: int
    wall_s: float
    cpu_us_per_step: float  # of the process: scheduler, episode, agent, fakes, ledger
    kib_per_episode: float  # growth of the process since before the first, all being under way


class LeanCluster(FakeCluster):
    """The shipped fake without its record of every environment that was leased."""

    @asynccontextmanager
    async def lease(self, task: Task | None = None) -> AsyncIterator[FakeEnv]:
        async with super().lease(task) as env:
            yield env
        self.leased.clear()


def play(settings: Settings) -> Played:
    with ExitStack() as stack, asyncio.Runner() as runner:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return runner.run(_play(settings, folder, stack))


async def _play(settings: Settings, folder: Path, stack: ExitStack) -> Played:
    config = make_config(settings.num_episodes, settings.num_steps)
    data: Endless | Counting = Endless(config.data.group_size)
    if settings.with_ledger:
        data = Counting(stack.enter_context(open_ledger(folder, config)))
    policy = SlowPolicy(settings.num_episodes, settings.answer_s)
    cluster = _cluster(settings)
    await cluster.start()
    scheduler = _scheduler(settings, config, folder, data, cluster, policy, stack)
    gc.collect()
    empty = _memory()
    stop = asyncio.Event()
    running = asyncio.create_task(scheduler.run(stop))
    try:
        await _until(policy.all_wait.is_set, running)
        stored, answers = data.num_stored, policy.num_answers
        cpu, wall = time.process_time(), time.perf_counter()
        await _until(lambda: data.num_stored - stored >= settings.num_ended, running)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        num_steps = policy.num_answers - answers
        stored = data.num_stored - stored
        full = _memory()
    finally:
        stop.set()
        await running
    return Played(
        most_at_once=policy.most_waiting,
        num_stored=stored,
        num_failed=data.num_failed,
        num_steps=num_steps,
        wall_s=wall,
        cpu_us_per_step=1e6 * cpu / max(1, num_steps),
        kib_per_episode=(full - empty) / 1024 / settings.num_episodes,
    )


def _cluster(settings: Settings) -> FakeCluster:
    script = EpisodeScript(num_steps=settings.num_steps)
    return LeanCluster([script], num_envs=settings.num_episodes, clock=time.monotonic)


def _scheduler(
    settings: Settings,
    config: Config,
    folder: Path,
    data: Endless | Counting,
    cluster: FakeCluster,
    policy: SlowPolicy,
    stack: ExitStack,
) -> Scheduler:
    metrics = MetricsWriter(folder / "metrics.jsonl", "runner")
    stack.callback(metrics.close)
    model = plain_model_folder(Path(settings.model), folder / "model")
    return Scheduler(
        data=data,
        cluster=cluster,
        policy=policy,
        agent=Agent(model, config.agent),
        config=config,
        run_id=folder.name,
        metrics=metrics,
        clock=SystemClock(),
    )


async def _until(condition: Callable[[], bool], running: asyncio.Task[None]) -> None:
    """Raises ``TimeoutError`` after ``PATIENCE_S``, or what ended the scheduler."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.wait([running], timeout=LOOK_S)
            if running.done():
                running.result()


async def fakes_alone_us(num_steps: int, *, num_episodes: int = 200) -> float:
    """CPU microseconds per step of the fakes themselves: what is not the runner's."""
    cluster = LeanCluster([EpisodeScript(num_steps=num_steps)], num_envs=1, clock=time.monotonic)
    await cluster.start()
    sampling = SamplingParams(temperature=1.0, max_tokens=64, seed=0)
    started = time.process_time()
    for seed in range(num_episodes):
        task = Task(task_id=TASK, seed=seed)
        async with cluster.lease(task) as env:
            await env.reset(task)
            for _ in range(num_steps):
                completion("click", sampling)
                await env.step(Click(point=Point(80, 120)))
            await env.evaluate()
    return 1e6 * (time.process_time() - started) / (num_episodes * num_steps)


def _memory() -> int:
    """Proportional set size of this process, in bytes."""
    return pss_bytes([all_processes()[os.getpid()]])


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if "num_steps_alone" in given:
        print(json.dumps(asyncio.run(fakes_alone_us(given["num_steps_alone"]))))
    else:
        print(json.dumps(asdict(play(Settings(**given)))))
