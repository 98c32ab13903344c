"""One evaluation of a run, as a process: ``dart-gui evaluator --run-dir RUN --phase before``."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
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
from dart_gui.errors import DataError, EnvError, PolicyError, SetupError
from dart_gui.files import ADVICE
from dart_gui.launch.plan import EvalJob
from dart_gui.launch.preflight import check_tasks
from dart_gui.launch.priority import gentle
from dart_gui.launch.run_folder import RunFolder
from dart_gui.metrics import MetricsWriter
from dart_gui.rollout.client import RolloutClient
from dart_gui.rollout.service import serve
from dart_gui.rollout.token import read_token
from dart_gui.runner.clock import SystemClock
from dart_gui.runner.episode import EpisodeLimits
from dart_gui.runner.evaluate import EvalProgress, EvalResult, TaskResult, evaluate
from dart_gui.runner.policy import Policy
from dart_gui.runner.random_policy import RandomPolicy
from dart_gui.runner.service import FoundPolicy, place_in
from dart_gui.types import WeightsRef

SAY_EVERY_S = 0.5
PATIENCE = 5.0  # times the time limits, where training takes the processor first


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
    check_pinned(job, result)
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
        if job.weights is not None:
            config = beside_training(config, job.weights)
            await stack.enter_async_context(gentle(config.eval.nice))
            policy: Policy = await serve_pinned(stack, config, job.weights)
        elif job.phase == "floor":
            policy = RandomPolicy(ImageLimits.from_model(Path(config.model.path)))
        else:
            policy = await open_policy(stack, folder, config)
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
            on_progress=StatusWriter(folder, job, now=time.monotonic),
        )


def beside_training(config: Config, weights: WeightsRef) -> Config:
    """The configuration of an evaluation of ``weights`` while training goes on: one worker, few
    pages, and the patience that low priority asks for."""
    slots = config.eval.every_envs
    return Config.model_validate(
        merged(
            config.model_dump(),
            {
                "model": {"path": weights.path},
                "env": {
                    "num_envs": slots,
                    "num_browsers": 1,
                    "timeout_s": PATIENCE * config.env.timeout_s,
                },
                "rollout": {
                    "num_workers": 1,
                    "max_unavailable": 1,
                    "host": "127.0.0.1",
                    "port": 0,
                    "url": "",
                    "request_timeout_s": PATIENCE * config.rollout.request_timeout_s,
                },
                "runner": {
                    "num_slots": slots,
                    "episode_timeout_s": PATIENCE * config.runner.episode_timeout_s,
                },
                "eval": {"num_episodes": config.eval.every_episodes},
            },
        )
    )


def merged(tree: dict[str, Any], changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {section: values | changes.get(section, {}) for section, values in tree.items()}


async def serve_pinned(stack: AsyncExitStack, config: Config, weights: WeightsRef) -> Policy:
    """A rollout service of our own with these weights, for as long as ``stack`` lives.

    Raises:
        SetupError: its worker cannot load them.
    """
    token = secrets.token_urlsafe(32)
    running = await stack.enter_async_context(serve(config, token=token, weights=weights))
    if any(slot.policy_version != weights.policy_version for slot in running.fleet.slots):
        raise SetupError(f"the weights cannot be served: {running.fleet.update_error}")
    timeout_s = config.rollout.request_timeout_s
    return await stack.enter_async_context(RolloutClient(running.url, token, timeout_s=timeout_s))


def check_pinned(job: EvalJob, result: EvalResult) -> None:
    """Raises:
    PolicyError: a completion was of another version than that of the job.
    """
    seen = {result.version_min, result.version_max}
    if job.weights is not None and seen != {job.weights.policy_version}:
        raise PolicyError(
            f"an evaluation of policy version {job.weights.policy_version} was answered by versions "
            f"{result.version_min} to {result.version_max}: its result is thrown away. The worker "
            "could not load the weights, or was started again with others: see the lines above."
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

    def __init__(self, folder: RunFolder, job: EvalJob, *, now: Callable[[], float]) -> None:
        self._folder = folder
        self._what = f"{job.title}: " if job.phase == "during" else ""  # the others are the phase
        self._now = now
        self._next_at = 0.0

    def __call__(self, progress: EvalProgress) -> None:
        if self._now() < self._next_at and progress.num_done < progress.num_total:
            return
        self._next_at = self._now() + SAY_EVERY_S
        done = f"{progress.num_done}/{progress.num_total}"
        text = f"({self._what}{done}, {progress.num_successes} succeeded)"
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
