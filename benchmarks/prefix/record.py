"""Record the episodes that are replayed: ``python -m benchmarks.prefix.record``.

The tiny agent plays them in the real browser with its usual engine. It is given several screenshots,
which it was not taught to use, and many steps: it seldom solves a task, and goes on clicking, which
makes the episodes long.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.prefix.episodes import EPISODES, RecordedEpisode, RecordedStep, save
from dart_gui.agent.registry import make_agent
from dart_gui.config import Config, from_dict
from dart_gui.env.suites import eval_seed, open_cluster
from dart_gui.rollout.client import RolloutClient
from dart_gui.rollout.service import serve
from dart_gui.runner.clock import SystemClock
from dart_gui.runner.episode import EpisodeLimits
from dart_gui.runner.trials import Played, Players, Trial
from dart_gui.types import CallUser, Finished, Task

TASKS = (
    "miniwob/click-button",
    "miniwob/click-checkboxes",
    "miniwob/click-tab",
    "miniwob/enter-text",
    "miniwob/focus-text",
    "miniwob/login-user",
)


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    episodes = asyncio.run(record(args))
    save(args.out, episodes)
    lengths = [len(episode.steps) for episode in episodes]
    size = args.out.stat().st_size // 1024
    print(
        f"{args.out}: {len(episodes)} episodes of {min(lengths)} to {max(lengths)} steps, {size} KiB"
    )


async def record(args: argparse.Namespace) -> list[RecordedEpisode]:
    config = _config(args)
    trials = [
        Trial(Task(task_id=task, seed=eval_seed(number)), repeat)
        for number in range(args.instances)
        for task in TASKS
        for repeat in range(args.group_size)
    ]
    found: dict[Trial, RecordedEpisode] = {}

    async def on_end(played: Played) -> None:
        found[played.trial] = _recorded(played)

    async with AsyncExitStack() as stack:
        players = await _players(stack, config)
        await players.play_all(trials, config.runner.num_slots, on_end)
    long = [found[trial] for trial in trials if len(found[trial].steps) >= args.min_steps]
    return long[: args.episodes]


async def _players(stack: AsyncExitStack, config: Config) -> Players:
    token = secrets.token_urlsafe(32)
    running = await stack.enter_async_context(serve(config, token=token))
    client = RolloutClient(running.url, token, timeout_s=config.rollout.request_timeout_s)
    cluster = open_cluster(config.env)
    stack.push_async_callback(cluster.close)
    await cluster.start()
    return Players(
        cluster=cluster,
        policy=await stack.enter_async_context(client),
        agent=make_agent(Path(config.model.path), config.agent),
        limits=EpisodeLimits.from_config(config),
        clock=SystemClock(),
        max_attempts=config.runner.max_attempts,
    )


def _recorded(played: Played) -> RecordedEpisode:
    """Raises ``ValueError`` where the infrastructure failed to the last attempt."""
    episode, recorder = played.episode, played.recorder
    if episode.evaluation is None or recorder is None:
        raise ValueError(f"{played.trial} has no evaluation: {episode.message}")
    steps, seen = [], 0
    for step in episode.steps:
        png = recorder.observations[seen].screenshot
        completion = step.completion
        steps.append(
            RecordedStep(
                screenshot=png, reply=completion.text, num_tokens=len(completion.response_ids)
            )
        )
        seen += sum(not isinstance(action, Finished | CallUser) for action in step.actions)
    return RecordedEpisode(
        task_id=episode.task.task_id,
        seed=episode.task.seed,
        repeat=played.trial.repeat,
        instruction=episode.instruction,
        width=recorder.observations[0].width,
        height=recorder.observations[0].height,
        steps=tuple(steps),
    )


def _config(args: argparse.Namespace) -> Config:
    tree = {
        "model": {"path": str(args.model), "device": "cpu"},
        "agent": {"max_images": 5},
        "env": {"tasks": list(TASKS), "num_envs": 8, "timeout_s": 60.0},
        "rollout": {"max_tokens": 48, "max_context": 2048, "request_timeout_s": 120.0},
        "runner": {
            "num_slots": 8,
            "max_steps": args.max_steps,
            "max_parse_errors": args.max_steps,
            "episode_timeout_s": 600.0,
        },
    }
    return from_dict(tree, source="benchmarks/prefix")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prefix.record",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=Path("models/tiny-agent"))
    parser.add_argument("--instances", type=int, default=2, help="of each task (default 2)")
    parser.add_argument("--group-size", type=int, default=4, help="attempts at each (default 4)")
    parser.add_argument("--max-steps", type=int, default=16, help="default 16")
    parser.add_argument("--min-steps", type=int, default=8, help="shorter ones are left out (8)")
    parser.add_argument("--episodes", type=int, default=24, help="kept at most (default 24)")
    parser.add_argument("--out", type=Path, default=EPISODES)
    return parser


if __name__ == "__main__":
    main()
