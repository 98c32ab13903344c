"""One evaluation of a run, as a process: ``dart-gui evaluator --run-dir RUN --phase before``."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from dart_gui.agent.geometry import ImageLimits
from dart_gui.agent.registry import make_agent
from dart_gui.config import Config
from dart_gui.env.suites import eval_seed, open_cluster
from dart_gui.errors import DataError, EnvError
from dart_gui.files import ADVICE
from dart_gui.launch.plan import EvalJob
from dart_gui.launch.preflight import check_tasks
from dart_gui.launch.run_folder import RunFolder
from dart_gui.metrics import MetricsWriter
from dart_gui.rollout.client import RolloutClient
from dart_gui.rollout.token import read_token
from dart_gui.runner.clock import SystemClock
from dart_gui.runner.episode import EpisodeLimits
from dart_gui.runner.evaluate import EvalProgress, EvalResult, TaskResult, evaluate
from dart_gui.runner.policy import Policy
from dart_gui.runner.random_policy import RandomPolicy
from dart_gui.runner.service import FoundPolicy, place_in

SAY_EVERY_S = 0.5


def run(run_dir: Path, job: EvalJob) -> int:
    """Evaluate against the run's service (none for the floor) and log one ``eval`` event."""
    folder = RunFolder(run_dir)
    config = folder.load_config()
    try:
        result = asyncio.run(play_all(folder, config, job))
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    failed = result.overall.num_failed
    if result.overall.success.rate is None:
        raise EnvError(
            f"none of the {failed} episodes could be evaluated: {result.overall.failures}"
        )
    metrics = MetricsWriter(folder.metrics, "evaluator")
    is_written = metrics.log("eval", **eval_event(job, result))
    metrics.close()
    if not is_written:
        raise DataError(
            f"the result of the evaluation cannot be written to {folder.metrics}. {ADVICE}, then "
            "continue the run"
        )
    return 0


async def play_all(folder: RunFolder, config: Config, job: EvalJob) -> EvalResult:
    cancel_on_sigterm()
    async with AsyncExitStack() as stack:
        policy = (
            RandomPolicy(ImageLimits.from_model(Path(config.model.path)))
            if job.phase == "floor"
            else await open_policy(stack, folder, config)
        )
        cluster = open_cluster(config.env)
        stack.push_async_callback(cluster.close)
        await cluster.start()
        return await evaluate(
            tasks=check_tasks(config),
            num_episodes=config.eval.num_episodes,
            cluster=cluster,
            policy=policy,
            agent=make_agent(Path(config.model.path), config.agent),
            limits=EpisodeLimits.from_config(config, temperature=job.temperature),
            clock=SystemClock(),
            num_slots=config.runner.num_slots,
            max_attempts=config.runner.max_attempts,
            eval_seed=eval_seed,
            on_progress=StatusWriter(folder, now=time.monotonic),
        )


def cancel_on_sigterm() -> None:
    """Python's default would leave the browser behind."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


async def open_policy(stack: AsyncExitStack, folder: RunFolder, config: Config) -> Policy:
    """The rollout service of the run, for as long as ``stack`` lives."""
    token = read_token(folder.path, config)

    def connect(url: str) -> RolloutClient:
        return RolloutClient(url, token, timeout_s=config.rollout.request_timeout_s)

    locate = place_in(folder.path, url=config.rollout.url)
    return await stack.enter_async_context(FoundPolicy(locate, connect))


class StatusWriter:
    """Tells the supervisor how far the evaluation is, twice a second at most."""

    def __init__(self, folder: RunFolder, *, now: Callable[[], float]) -> None:
        self._folder = folder
        self._now = now
        self._next_at = 0.0

    def __call__(self, progress: EvalProgress) -> None:
        if self._now() < self._next_at and progress.num_done < progress.num_total:
            return
        self._next_at = self._now() + SAY_EVERY_S
        text = f"({progress.num_done}/{progress.num_total}, {progress.num_successes} succeeded)"
        with contextlib.suppress(DataError):  # a line of the live view; the figures come later
            self._folder.set_status("evaluator", {"text": text})


def eval_event(job: EvalJob, result: EvalResult) -> dict[str, Any]:
    """The values of the ``eval`` event; rates in [0, 1] with their 95 % intervals."""
    return {
        "phase": job.phase,
        "temperature": job.temperature,
        "train_step": job.train_step,
        **_rates(result.overall),
        "mean_reward": result.overall.mean_reward,
        "mean_steps": result.overall.mean_steps,
        "stop_reasons": result.overall.stop_reasons,
        "num_failed": result.overall.num_failed,
        "policy_version": result.version_max,
        "wall_s": result.wall_s,
        "per_task": {task: _rates(each) for task, each in result.by_task.items()},
    }


def _rates(result: TaskResult) -> dict[str, Any]:
    success = result.success
    return {
        "success_rate": success.rate,
        "low": success.low,
        "high": success.high,
        "num_episodes": success.num_episodes,
    }
