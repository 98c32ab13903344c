"""Where successes for an experience pool come from: scripted solutions, runs, published folders.

Each source gives :class:`~dart_gui.train.foreign.ForeignEpisode` objects: messages as our own agent
would have been shown them, and replies as text. Only verified successes are given.
"""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from dart_gui.agent.agent import Agent
from dart_gui.agent.geometry import Geometry
from dart_gui.agent.grammar import parse, render
from dart_gui.agent.history import Turn
from dart_gui.agent.prompts import disarm_control_tokens, user_prompt
from dart_gui.agent.syntax import strip_end_tokens
from dart_gui.config import Config
from dart_gui.data.manager import DataManager
from dart_gui.env.browser.cluster import BrowserCluster
from dart_gui.env.browser.narration import thought
from dart_gui.env.browser.oracle import decide
from dart_gui.env.suites import train_seed
from dart_gui.errors import ConfigError, DataError
from dart_gui.train.foreign import ForeignEpisode, ForeignStep
from dart_gui.types import Observation, Task, Trajectory

_INSTRUCTION = "## User Instruction"
_MAX_REPLIES = 100


# --- scripted solutions ------------------------------------------------------------------------


async def scripted(
    config: Config, agent: Agent, task_ids: list[str], *, num_per_task: int, seed: int
) -> AsyncIterator[ForeignEpisode]:
    """Solve training instances of each task in the real browser; what fails is left out.

    Raises:
        ConfigError: a task has no scripted solution.
    """
    rng = random.Random(seed)
    cluster = BrowserCluster(config.env)
    await cluster.start()
    try:
        for task_id in task_ids:
            for _ in range(num_per_task):
                task = Task(task_id=task_id, seed=train_seed(rng))
                episode = await _solve(cluster, agent, task, config.runner.max_steps)
                if episode is not None:
                    yield episode
    finally:
        await cluster.close()


async def _solve(
    cluster: BrowserCluster, agent: Agent, task: Task, max_steps: int
) -> ForeignEpisode | None:
    steps: list[ForeignStep] = []
    async with cluster.lease(task) as env:
        observation = await env.reset(task)
        instruction = observation.instruction
        geometry = Geometry(observation.width, observation.height, agent.limits)
        conversation = agent.start(observation)
        while len(steps) < max_steps and not observation.terminated:
            decision = await decide(env)
            reply = render(
                thought(task.task_id, instruction, decision), [decision.action], geometry
            )
            messages = conversation.prompt().messages
            steps.append(ForeignStep(messages=messages, reply=reply, actions=[decision.action]))
            conversation.hear(reply)
            observation = await env.step(decision.action)
            if not observation.terminated:
                conversation.see(observation)
        evaluation = await env.evaluate()
    if not evaluation.success:
        return None
    return ForeignEpisode(
        task=task,
        instruction=instruction,
        steps=steps,
        images=dict(conversation.images),
        reward=evaluation.reward,
    )


# --- runs --------------------------------------------------------------------------------------


def rendered_again(data: DataManager, agent: Agent, trajectory: Trajectory) -> ForeignEpisode:
    """A success of a run whose agent renders otherwise: its replies under the prompts of ours.

    The screenshots are those that its model saw; the caller checks that ours would see the same.
    """
    text = user_prompt(trajectory.instruction, agent.language)
    turns: list[Turn] = []
    steps: list[ForeignStep] = []
    note: str | None = None
    for step in trajectory.steps:
        newest = step.completion.image_hashes[-1]
        turns.append(Turn(newest, note=note))
        reply = strip_end_tokens(step.completion.text)
        steps.append(
            ForeignStep(
                messages=agent.window.messages(text, turns), reply=reply, actions=step.actions
            )
        )
        turns[-1] = Turn(newest, reply=disarm_control_tokens(reply), note=note)
        note = None
        if step.parse_error is not None:
            note = disarm_control_tokens(f"The last reply could not be parsed: {step.parse_error}")
    return ForeignEpisode(
        task=trajectory.task,
        instruction=trajectory.instruction,
        steps=steps,
        images=data.load_images({turn.image_hash for turn in turns}),
        reward=trajectory.reward,
        policy_version=trajectory.version_max,
    )


# --- the published on-disk format ---------------------------------------------------------------


def published_folders(root: Path) -> list[Path]:
    """Trajectory folders at or below ``root``.

    Raises:
        ConfigError: there is none.
    """
    found = sorted(path.parent for path in root.rglob("final_messages.json"))
    if not found:
        raise ConfigError(
            f"{root} holds no trajectory in the published format: a folder "
            "<task_id>_<trace_id> with final_messages.json, reward.txt and image_<n>.png"
        )
    return found


def published(folder: Path, agent: Agent) -> ForeignEpisode | None:
    """The success in ``folder``; None where its reward is below 1.

    The format is that of dart_rollouter (storage_actor.py, model_service.py): screenshots before any
    transform, full dialogue, reward as text.

    Raises:
        DataError: a file is missing or makes no sense.
    """
    reward = _reward(folder)
    if reward < 1.0:
        return None
    messages = _dialogue(folder)
    instruction = _instruction(folder, messages)
    names = [part["image_url"] for m in messages if m["role"] == "user" for part in _images(m)]
    replies = [_text(m) for m in messages if m["role"] == "assistant"]
    if not replies or len(names) < len(replies) or len(replies) > _MAX_REPLIES:
        raise DataError(
            f"{folder} has {len(replies)} replies to {len(names)} screenshots; each reply needs one"
        )
    steps: list[ForeignStep] = []
    conversation = None
    for name, reply in zip(names, replies, strict=False):
        observation = _observation(folder / _find_image(folder, name), instruction)
        if conversation is None:
            conversation = agent.start(observation)
        else:
            conversation.see(observation)
        messages = conversation.prompt().messages
        conversation.hear(reply)
        parsed = parse(reply, Geometry(observation.width, observation.height, agent.limits))
        actions = list(parsed.actions)
        steps.append(ForeignStep(messages=messages, reply=reply, actions=actions))
    assert conversation is not None
    return ForeignEpisode(
        task=Task(task_id=folder.name.rpartition("_trace-")[0] or folder.name, seed=0),
        instruction=instruction,
        steps=steps,
        images=dict(conversation.images),
        reward=min(1.0, reward),
    )


def _reward(folder: Path) -> float:
    try:
        return float((folder / "reward.txt").read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / 'reward.txt'} cannot be read: {error}") from error


def _dialogue(folder: Path) -> list[dict[str, Any]]:
    path = folder / "final_messages.json"
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
        roles = [message["role"] for message in messages]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is no dialogue: {error}") from error
    if "assistant" not in roles:
        raise DataError(f"{path} has no reply")
    return messages


def _images(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if isinstance(message["content"], list):
        yield from (part for part in message["content"] if part.get("type") == "image_url")


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def _instruction(folder: Path, messages: list[dict[str, Any]]) -> str:
    """From the task's file where the copy has it, else what follows the prompt's last heading."""
    task = folder / "task_config.json"
    if task.is_file():
        return str(json.loads(task.read_text(encoding="utf-8"))["instruction"])
    prompt = next(_text(message) for message in messages if message["role"] == "user")
    _, found, instruction = prompt.rpartition(_INSTRUCTION)
    if not found:
        raise DataError(
            f"{folder} has no task_config.json, and its prompt has no heading {_INSTRUCTION!r}"
        )
    return instruction.strip()


def _find_image(folder: Path, name: str) -> str:
    """The runner's copy counts ``image_0003.png``, the model service's ``image_3.png``."""
    if (folder / name).is_file():
        return name
    short = re.sub(r"_0*(\d+)\.png$", r"_\1.png", name)
    if (folder / short).is_file():
        return short
    raise DataError(f"{folder} has neither {name} nor {short}")


def _observation(path: Path, instruction: str) -> Observation:
    png = path.read_bytes()
    with Image.open(io.BytesIO(png)) as image:
        width, height = image.size
    return Observation(screenshot=png, width=width, height=height, instruction=instruction)
