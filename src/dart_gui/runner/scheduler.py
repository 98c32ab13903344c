"""Keeps every slot full: plan -> lease -> episode -> store, one trajectory at a time.

    slot x N      consumes planned episodes; waits for admission, an environment, completions;
                  produces trajectories and counted failures; unblocked by the tick.
    watch         consumes the service's status; produces the served version and whether it is up.
    report        produces one ``runner`` event a second.

A slot that ends an episode starts the next one at once, whatever its siblings do. A planned episode
that was handed out ends in exactly one of: ``store``, ``fail``, or back in the plan by ``recover``
when the scheduler stops. The truth is in the ledger: killing this process loses attempts under way
and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from dart_gui.errors import PolicyError
from dart_gui.runner.breaker import Breaker
from dart_gui.runner.clock import Clock, within
from dart_gui.runner.episode import Episode, EpisodeLimits, run_leased_episode
from dart_gui.runner.tally import Tally, episode_values
from dart_gui.types import PlannedEpisode, StopReason, Trajectory

if TYPE_CHECKING:
    from dart_gui.agent.agent import Agent
    from dart_gui.config import Config
    from dart_gui.env.protocol import EnvCluster
    from dart_gui.metrics import MetricsWriter
    from dart_gui.runner.policy import ServedPolicy

T = TypeVar("T")
logger = logging.getLogger(__name__)

TICK_S = 0.1  # between two looks for work
WATCH_S = 0.5  # between two looks at the service
REPORT_S = 1.0
STOP_S = 8.0  # for the attempts under way to give their environments back


class RunnerData(Protocol):
    """The runner's side of the data manager; synchronous."""

    def recover(self) -> int: ...

    def next_episode(self, served_version: int) -> PlannedEpisode | None: ...

    def store(self, trajectory: Trajectory, images: Mapping[str, bytes]) -> None: ...

    def fail(self, episode: PlannedEpisode, reason: StopReason, message: str) -> None: ...


class Scheduler:
    def __init__(
        self,
        *,
        data: RunnerData,
        cluster: EnvCluster,
        policy: ServedPolicy,
        agent: Agent,
        config: Config,
        run_id: str,
        metrics: MetricsWriter,
        clock: Clock,
        executor: Executor | None = None,
    ) -> None:
        """``executor`` runs the data manager's calls, one at a time; its own thread by default."""
        self._data = data
        self._cluster = cluster
        self._policy = policy
        self._agent = agent
        self._limits = EpisodeLimits.from_config(config)
        self._num_slots = config.runner.num_slots
        self._run_id = run_id
        self._metrics = metrics
        self._clock = clock
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="data")
        self._planning = asyncio.Lock()
        self._breaker = Breaker(threshold=max(4, self._num_slots))
        self._tally = Tally(started_at=clock.monotonic())
        self._served_version: int | None = None  # None while the service is away
        self._num_running = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Run episodes until ``stop`` is set; attempts then under way return to the plan.

        Raises:
            DartError: what no retry mends, such as a refused token or a broken ledger.
        """
        await self._call(self._data.recover)
        loops = [asyncio.create_task(self._slot()) for _ in range(self._num_slots)]
        loops += [asyncio.create_task(self._watch()), asyncio.create_task(self._report())]
        stopped = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([stopped, *loops], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopped}:
                task.result()  # the loops have no end of their own, so this raises
        finally:
            await self._end([stopped, *loops])

    async def _end(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):  # an environment that hangs dies with the cluster
            await within(STOP_S, _gather(tasks), self._clock)
        # One thread, in order: a store that was under way is through before this looks.
        num_returned = await self._call(self._data.recover)
        logger.info("stopped: %d attempts return to the plan", num_returned)
        self._executor.shutdown()

    async def _slot(self) -> None:
        while True:
            planned = await self._next()
            self._num_running += 1
            try:
                await self._finish(planned, await self._attempt(planned))
            finally:
                self._num_running -= 1

    async def _next(self) -> PlannedEpisode:
        """The next episode to run. One idle slot looks for all of them."""
        async with self._planning:
            while True:
                version = self._served_version
                if version is not None and self._breaker.allows(self._clock.monotonic()):
                    planned = await self._call(self._data.next_episode, version)
                    if planned is not None:
                        self._breaker.started()
                        return planned
                await self._clock.sleep(TICK_S)

    async def _attempt(self, planned: PlannedEpisode) -> Episode:
        return await run_leased_episode(
            planned.task,
            cluster=self._cluster,
            policy=self._policy,
            agent=self._agent,
            limits=self._limits.under(planned.max_steps),
            seed=planned.seed,
            clock=self._clock,
            trajectory_id=planned.episode_id,
        )

    async def _finish(self, planned: PlannedEpisode, episode: Episode) -> None:
        if episode.evaluation is None:
            await self._fail(planned, episode)
            return
        trajectory = episode.trajectory(planned, run_id=self._run_id)
        await self._call(self._data.store, trajectory, episode.images)
        self._breaker.succeeded()
        self._tally.stored(trajectory, self._clock.monotonic())
        self._metrics.log(
            "episode",
            **episode_values(trajectory),
            group_size=planned.group_size,
            max_steps=planned.max_steps or self._limits.max_steps,
        )

    async def _fail(self, planned: PlannedEpisode, episode: Episode) -> None:
        reason, message = episode.stop_reason, episode.message
        if reason is StopReason.POLICY_ERROR:
            self._served_version = None  # start nothing before the service has answered again
        await self._call(self._data.fail, planned, reason, message)
        self._breaker.failed(self._clock.monotonic())
        self._tally.failed(reason)
        self._metrics.log(
            "episode_failed",
            trajectory_id=planned.episode_id,
            task_id=planned.task.task_id,
            attempt=planned.attempt,
            reason=reason.value,
            message=message[:500],
            num_steps=len(episode.steps),
        )
        logger.warning("%s attempt %d: %s", planned.episode_id, planned.attempt, message)

    async def _watch(self) -> None:
        while True:
            try:
                version: int | None = await self._policy.served_version()
            except PolicyError as error:
                if self._served_version is not None:
                    logger.warning("the rollout service is away: %s", error)
                version = None
            self._served_version = version
            await self._clock.sleep(WATCH_S)

    async def _report(self) -> None:
        last_at, last_busy_s = self._clock.monotonic(), self._cluster.stats().busy_s
        while True:
            await self._clock.sleep(REPORT_S)
            now, stats = self._clock.monotonic(), self._cluster.stats()
            capacity_s = max(1e-9, (now - last_at) * stats.num_envs)
            self._metrics.log(
                "runner",
                **self._tally.summary(now),
                num_running=self._num_running,
                num_slots=self._num_slots,
                num_envs=stats.num_envs,
                num_envs_busy=stats.num_busy,
                num_envs_replaced=stats.num_replaced,
                env_utilisation=min(1.0, (stats.busy_s - last_busy_s) / capacity_s),
                served_version=self._served_version,
                breaker=self._breaker.state.value,
            )
            last_at, last_busy_s = now, stats.busy_s

    async def _call(self, function: Callable[..., T], *args: Any) -> T:
        """A call of the data manager, off the event loop. It runs to its end even if we are
        cancelled; calls never overlap."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)


async def _gather(tasks: Sequence[asyncio.Task[Any]]) -> None:
    await asyncio.wait(tasks)
