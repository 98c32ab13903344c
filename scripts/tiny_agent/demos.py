"""Demonstrations for the warm start: scripted solutions of the default tasks in the real browser.

    python scripts/tiny_agent/demos.py DEMOS --episodes 1600

Each line of ``DEMOS/demos.jsonl`` is one step as the agent would have seen it: the chat messages
(screenshots by hash, under ``DEMOS/images``) and the reply that a demonstrator gives. Clicks fall
anywhere in the middle of the target. Now and then a random click comes first, so that screens off the
shortest path are seen too; such clicks are executed, and not imitated. Seeds are training seeds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from pathlib import Path

from rich.progress import Progress

from dart_gui.agent.agent import Agent
from dart_gui.agent.geometry import Geometry, ImageLimits
from dart_gui.agent.grammar import render
from dart_gui.config import AgentConfig, EnvConfig
from dart_gui.env.browser.cluster import BrowserCluster
from dart_gui.env.browser.oracle import Decision, decide
from dart_gui.env.suites import get_suite, train_seed
from dart_gui.types import Action, Click, Observation, Point, Task, TypeText

MAX_STEPS = 6
STRAY_CLICK_RATE = 0.1
# Read by the renderer only; the folder of the finished agent holds the same limits.
LIMITS = ImageLimits(min_pixels=56 * 56, max_pixels=28 * 28 * 256)


def thought(task_id: str, instruction: str, action: Action, done: list[Action]) -> str:
    """What the demonstrator thinks; short, and about the state. ``done`` are its earlier actions,
    without the stray ones."""
    match task_id.removeprefix("miniwob/"):
        case "click-color":
            return f"The {instruction.split(' the ')[1].split(' colored')[0]} box."
        case "click-dialog":
            return "Close the dialog."
        case "click-test-2":
            return "Button ONE."
        case "focus-text-2":
            return f"The {instruction.split(' the ')[1].split(' ')[0]} field."
        case "grid-coordinate":
            return "The point of the grid."
        case "click-button-sequence":
            return "Then TWO." if done else "First ONE."
        case "click-collapsible":
            return "Submit." if done else "Open the section."
        case _:
            if isinstance(action, TypeText):
                return "Type the text."
            typed = any(isinstance(earlier, TypeText) for earlier in done)
            return "Submit." if typed else "Focus the field."


def aim(decision: Decision, rng: random.Random) -> Action:
    """The decided action; a click falls anywhere in the middle of its target."""
    if decision.box is None:
        return decision.action
    x0, y0, x1, y1 = decision.box
    reach_x, reach_y = min(8.0, (x1 - x0) / 4), min(8.0, (y1 - y0) / 4)
    x = (x0 + x1) / 2 + rng.uniform(-reach_x, reach_x)
    y = (y0 + y1) / 2 + rng.uniform(-reach_y, reach_y)
    return Click(point=Point(round(x), round(y)))


async def demonstrate(cluster: BrowserCluster, agent: Agent, task: Task, out: Path) -> list[dict]:
    rng = random.Random(f"{task.task_id}/{task.seed}")
    steps: list[dict] = []
    done: list[Action] = []
    async with cluster.lease(task) as env:
        observation: Observation = await env.reset(task)
        conversation = agent.start(observation)
        for turn in range(MAX_STEPS):
            prompt = conversation.prompt()
            stray = rng.random() < STRAY_CLICK_RATE
            if stray:
                action: Action = Click(point=Point(rng.randrange(160), rng.randrange(50, 210)))
            else:
                action = aim(await decide(env), rng)
            words = thought(task.task_id, observation.instruction, action, done)
            reply = render(words, [action], Geometry(observation.width, observation.height, LIMITS))
            if not stray:
                done.append(action)
                for name, png in prompt.images.items():
                    (out / "images" / f"{name}.png").write_bytes(png)
                steps.append(
                    {
                        "task_id": task.task_id,
                        "seed": task.seed,
                        "turn": turn,
                        "instruction": observation.instruction,
                        "messages": prompt.messages,
                        "reply": reply,
                    }
                )
            conversation.hear(reply)
            observation = await env.step(action)
            if observation.terminated:
                break
            conversation.see(observation)
    return steps


async def collect(out: Path, episodes: int, max_images: int, seed: int) -> None:
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
        Task(task_id=task_id, seed=train_seed(rng))
        for _ in range(episodes)
        for task_id in get_suite("miniwob").default_tasks
    ]
    await cluster.start()
    queue = iter(tasks)
    with (out / "demos.jsonl").open("w") as lines, Progress() as progress:
        bar = progress.add_task("demonstrations", total=len(tasks))

        async def worker() -> None:
            for task in queue:
                for step in await demonstrate(cluster, agent, task, out):
                    lines.write(json.dumps(step) + "\n")
                progress.advance(bar)

        await asyncio.gather(*(worker() for _ in range(8)))
    await cluster.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--episodes", type=int, default=1600, help="per task")
    parser.add_argument("--max-images", type=int, default=1, help="as the agent will be configured")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    asyncio.run(collect(args.out, args.episodes, args.max_images, args.seed))


if __name__ == "__main__":
    main()
