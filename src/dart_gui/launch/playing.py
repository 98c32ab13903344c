"""One episode of a run's model, as a process: ``dart-gui player --run-dir RUN --task TASK``."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

from dart_gui.agent.geometry import ImageLimits
from dart_gui.agent.registry import make_agent
from dart_gui.config import Config
from dart_gui.env.suites import open_cluster
from dart_gui.launch.evaluation import cancel_on_sigterm, open_policy
from dart_gui.launch.run_folder import RunFolder
from dart_gui.runner.clock import SystemClock
from dart_gui.runner.episode import EpisodeLimits
from dart_gui.runner.play import PlayResult, play
from dart_gui.runner.random_policy import RandomPolicy
from dart_gui.runner.trials import sampling_seed
from dart_gui.types import Task


def run(run_dir: Path, task: Task, *, temperature: float, use_random: bool, out_dir: Path) -> int:
    """Play ``task``; what happened goes to ``status/player.json``, the pictures to ``out_dir``."""
    folder = RunFolder(run_dir)
    config = folder.load_config()
    limits = EpisodeLimits.from_config(config, temperature=temperature)
    try:
        result = asyncio.run(
            play_one(folder, config, task, limits=limits, use_random=use_random, out_dir=out_dir)
        )
    except asyncio.CancelledError:
        return 128 + signal.SIGTERM
    folder.set_status("player", summary(result))
    return 0


async def play_one(
    folder: RunFolder,
    config: Config,
    task: Task,
    *,
    limits: EpisodeLimits,
    use_random: bool,
    out_dir: Path,
) -> PlayResult:
    cancel_on_sigterm()
    async with AsyncExitStack() as stack:
        policy = (
            RandomPolicy(ImageLimits.from_model(Path(config.model.path)))
            if use_random
            else await open_policy(stack, folder, config)
        )
        cluster = open_cluster(config.env)
        stack.push_async_callback(cluster.close)
        await cluster.start()
        return await play(
            task,
            out_dir,
            cluster=cluster,
            policy=policy,
            agent=make_agent(Path(config.model.path), config.agent),
            limits=limits,
            seed=sampling_seed(task),
            clock=SystemClock(),
        )


def summary(result: PlayResult) -> dict[str, object]:
    evaluation = result.episode.evaluation
    return {
        "instruction": result.episode.instruction,
        "stop_reason": result.episode.stop_reason.value,
        "reward": evaluation.reward if evaluation else None,
        "success": evaluation.success if evaluation else None,
        "report": str(result.report),
        "sheet": str(result.sheet),
        "steps": [
            {"thought": step.thought, "actions": step.actions, "problem": step.problem}
            for step in result.steps
        ],
    }
