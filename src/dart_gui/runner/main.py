"""The runner process: wires the scheduler to the browser, the service and the ledger of a run."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from dart_gui import config as config_module
from dart_gui.errors import SetupError
from dart_gui.files import write_whole
from dart_gui.rollout.token import read_token
from dart_gui.runner.clock import Clock, SystemClock
from dart_gui.runner.service import FoundPolicy, Locate, place_in

if TYPE_CHECKING:
    from dart_gui.config import Config
    from dart_gui.data.manager import DataManager
    from dart_gui.data.pool import Conditions
    from dart_gui.env.protocol import EnvCluster

logger = logging.getLogger(__name__)

START_S = 300.0  # for the service to say where it is; a large model takes minutes to load
CLOSE_S = 8.0  # for the browsers to end
TICK_S = 0.1


def run(run_dir: Path) -> int:
    """Run episodes for the run in ``run_dir`` until SIGTERM or SIGINT; the exit code.

    Raises:
        DartError: what a restart does not mend, such as a configuration that cannot be read.
    """
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=form)
    config = config_module.load(run_dir / "config.toml")
    return asyncio.run(_Runner(run_dir, config).run())


class _Runner:
    def __init__(self, run_dir: Path, config: Config, *, clock: Clock | None = None) -> None:
        self._run_dir = run_dir
        self._config = config
        self._clock = clock or SystemClock()

    async def run(self) -> int:
        from dart_gui.agent.registry import make_agent
        from dart_gui.metrics import MetricsWriter
        from dart_gui.runner.scheduler import Scheduler

        stop = _stop_on_signals()
        locate = place_in(self._run_dir, url=self._config.rollout.url)
        async with AsyncExitStack() as stack:
            _write_status(self._run_dir)
            cluster = await self._open_cluster(stack)
            if not await _found(locate, stop, self._clock):
                return 0
            policy = await stack.enter_async_context(self._policy(locate))
            metrics = MetricsWriter(self._run_dir / "metrics.jsonl", "runner", self._clock.now)
            stack.callback(metrics.close)
            data = stack.enter_context(open_data(self._run_dir, self._config, self._clock))
            scheduler = Scheduler(
                data=data,
                cluster=cluster,
                policy=policy,
                agent=make_agent(Path(self._config.model.path), self._config.agent),
                config=self._config,
                run_id=self._run_dir.name,
                metrics=metrics,
                clock=self._clock,
            )
            await scheduler.run(stop)
        return 0

    async def _open_cluster(self, stack: AsyncExitStack) -> EnvCluster:
        cluster = open_cluster(self._config)
        stack.push_async_callback(_close_in_time, cluster)
        await cluster.start()
        return cluster

    def _policy(self, locate: Locate) -> FoundPolicy:
        from dart_gui.rollout.client import RolloutClient

        token = read_token(self._run_dir, self._config)
        timeout_s = self._config.rollout.request_timeout_s
        return FoundPolicy(locate, lambda url: RolloutClient(url, token, timeout_s=timeout_s))


def open_cluster(config: Config) -> EnvCluster:
    """The environment cluster of a configuration, not started."""
    from dart_gui.env import suites

    return suites.open_cluster(config.env)


def open_data(run_dir: Path, config: Config, clock: Clock) -> DataManager:
    """The data manager of a run, with the sampler of its suite's training seeds."""
    from dart_gui.data.manager import DataManager
    from dart_gui.data.sampler import RoundRobinSampler
    from dart_gui.env.suites import train_seed

    sampler = RoundRobinSampler(
        task_names(config),
        seed=config.run.seed,
        train_seed=train_seed,
    )
    return DataManager.open(
        run_dir, config, sampler=sampler, conditions=run_conditions(config), clock=clock.now
    )


def run_conditions(config: Config) -> Conditions:
    """The versions under which a success of this configuration counts elsewhere."""
    from dart_gui.agent.fingerprint import renderer_fingerprint
    from dart_gui.data.pool import Conditions
    from dart_gui.env.suites import get_suite

    env_version = get_suite(config.env.suite).env_version
    return Conditions(
        env_version=env_version,
        verifier_version=env_version,  # the pages of this suite score themselves
        renderer=renderer_fingerprint(Path(config.model.path), config.agent),
    )


def task_names(config: Config) -> list[str]:
    """The tasks of a configuration; the suite's default where it names none.

    Raises:
        ConfigError: there is no such task.
    """
    from dart_gui.env.suites import get_suite

    suite = get_suite(config.env.suite)
    return [suite.check(name) for name in config.env.tasks] or list(suite.default_tasks)


async def _found(locate: Locate, stop: asyncio.Event, clock: Clock) -> bool:
    """Wait until the service has said where it is. False if we are to stop first."""
    deadline = clock.monotonic() + START_S
    while locate() is None:
        if stop.is_set():
            return False
        if clock.monotonic() > deadline:
            raise SetupError(
                f"the rollout service did not say where it is within {START_S:g} s (it writes "
                "status/rollout.json into the run's folder): see logs/rollout.log there, or set "
                "rollout.url"
            )
        await clock.sleep(TICK_S)
    return True


async def _close_in_time(cluster: EnvCluster) -> None:
    try:
        async with asyncio.timeout(CLOSE_S):
            await cluster.close()
    except TimeoutError:
        logger.warning("the browsers did not close within %g s; they end with us", CLOSE_S)


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def _write_status(run_dir: Path) -> None:
    write_whole(run_dir / "status" / "runner.json", json.dumps({"pid": os.getpid()}))
