"""Demonstrations for the warm start: scripted solutions of the default tasks in the real browser.

    python scripts/tiny_agent/demos.py DEMOS --episodes 315

Each line of ``DEMOS/demos.jsonl`` is one step as the agent would have seen it: the chat messages
(screenshots by hash, under ``DEMOS/images``) and the reply that a demonstrator gives. The demonstrator
knows the solution and has a shaky hand (``--shake``): a click that misses its target is executed and
imitated as it fell, and where the page allows it the demonstrator tries again. So the agent learns what
to aim at, and to miss: to hit is left for reinforcement learning. Seeds are training seeds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from dart_gui.agent.agent import Agent
from dart_gui.agent.geometry import Geometry, ImageLimits
from dart_gui.agent.grammar import render
from dart_gui.config import AgentConfig, EnvConfig
from dart_gui.env.browser.cluster import BrowserCluster
from dart_gui.env.browser.narration import thought
from dart_gui.env.browser.oracle import Decision, decide
from dart_gui.env.suites import get_suite, train_seed
from dart_gui.types import Action, Click, Observation, Point, Task

MAX_STEPS = 4
# Read by the renderer only; the folder of the finished agent holds the same limits.
LIMITS = ImageLimits(min_pixels=56 * 56, max_pixels=28 * 28 * 256)


def aim(decision: Decision, shake: float, rng: random.Random) -> Action:
    """The decided action; a click falls around the middle of its target with a standard deviation of
    ``shake`` pixels, and is aimed anew when it would leave the page."""
    if not isinstance(decision.action, Click):
        return decision.action
    while True:
        x = round(rng.gauss(decision.action.point.x, shake))
        y = round(rng.gauss(decision.action.point.y, shake))
        if 0 <= x < 160 and 0 <= y < 210:
            return Click(point=Point(x, y))


async def demonstrate(
    cluster: BrowserCluster, agent: Agent, task: Task, shake: float, out: Path
) -> list[dict]:
    rng = random.Random(f"{task.task_id}/{task.seed}")
    steps = []
    async with cluster.lease(task) as env:
        observation: Observation = await env.reset(task)
        conversation = agent.start(observation)
        for turn in range(MAX_STEPS):
            prompt = conversation.prompt()
            decision = await decide(env)
            action = aim(decision, shake, rng)
            words = thought(task.task_id, observation.instruction, decision)
            reply = render(words, [action], Geometry(observation.width, observation.height, LIMITS))
            for name, png in prompt.images.items():
                (out / "images" / f"{name}.png").write_bytes(png)
            steps.append(
                {
                    "task_id": task.task_id,
                    "seed": task.seed,
                    "turn": turn,
                    "instruction": observation.instruction,
                    "messages": prompt.messages,
                    "box": decision.box,
                    "reply": reply,
                }
            )
            conversation.hear(reply)
            observation = await env.step(action)
            if observation.terminated:
                break
            conversation.see(observation)
    return steps


async def collect(
    out: Path, *, task_ids: Sequence[str], episodes: int, shake: float, max_images: int, seed: int
) -> None:
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "preprocessor_config.json").write_text(
        json.dumps(
            {"size": {"shortest_edge": LIMITS.min_pixels, "longest_edge": LIMITS.max_pixels}}
        )
    )
    (out / "dart_agent.json").write_text(json.dumps({"transform": "ruler"}))
    agent = Agent(out, AgentConfig(max_images=max_images))
    cluster = BrowserCluster(EnvConfig(num_envs=24))
    rng = random.Random(seed)
    tasks = [
        Task(task_id=task_id, seed=train_seed(rng)) for _ in range(episodes) for task_id in task_ids
    ]
    await cluster.start()
    queue = iter(tasks)
    with (out / "demos.jsonl").open("a") as lines, Progress() as progress:
        bar = progress.add_task("demonstrations", total=len(tasks))

        async def worker() -> None:
            for task in queue:
                for step in await demonstrate(cluster, agent, task, shake, out):
                    lines.write(json.dumps(step) + "\n")
                progress.advance(bar)

        await asyncio.gather(*(worker() for _ in range(8)))
    await cluster.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder; what it holds already stays")
    parser.add_argument("--tasks", nargs="+", metavar="PAGE", help="not all default tasks")
    parser.add_argument("--episodes", type=int, default=400, help="per task")
    parser.add_argument("--shake", type=float, default=8.0, help="of the hand, in pixels")
    parser.add_argument("--max-images", type=int, default=1, help="as the agent will be configured")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    suite = get_suite("miniwob")
    chosen = [suite.check(f"miniwob/{page}") for page in args.tasks or ()]
    asyncio.run(
        collect(
            args.out,
            task_ids=chosen or suite.default_tasks,
            episodes=args.episodes,
            shake=args.shake,
            max_images=args.max_images,
            seed=args.seed,
        )
    )


if __name__ == "__main__":
    main()
