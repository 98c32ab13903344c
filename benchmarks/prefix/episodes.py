"""Recorded episodes: what an environment showed and what the model replied, and their prompts under
another history rule."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dart_gui.agent.agent import Agent, Prompt
from dart_gui.types import Observation

EPISODES = Path(__file__).with_name("episodes.zip")
_INDEX = "episodes.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedStep:
    screenshot: bytes  # PNG, as the environment gave it
    reply: str
    num_tokens: int  # of the reply


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedEpisode:
    task_id: str
    seed: int  # of the task instance
    repeat: int  # the attempts at one instance are a group
    instruction: str
    width: int  # pixels of the screenshots
    height: int
    steps: tuple[RecordedStep, ...]

    @property
    def name(self) -> str:
        return f"{self.task_id}/{self.seed}/{self.repeat}"


def prompts(episode: RecordedEpisode, agent: Agent) -> Iterator[Prompt]:
    """The prompt of each step, as ``agent`` makes it from what was seen and replied before."""
    conversation = None
    for step in episode.steps:
        observation = Observation(
            screenshot=step.screenshot,
            width=episode.width,
            height=episode.height,
            instruction=episode.instruction,
        )
        if conversation is None:
            conversation = agent.start(observation)
        else:
            conversation.see(observation)
        yield conversation.prompt()
        conversation.hear(step.reply)


def save(path: Path, episodes: Sequence[RecordedEpisode]) -> None:
    """A ZIP file: each screenshot once, by its hash, and an index in JSON."""
    index = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        pngs = {step.screenshot for episode in episodes for step in episode.steps}
        for png in sorted(pngs, key=_hash):
            _write(archive, f"{_hash(png)}.png", png)
        for episode in episodes:
            tree = asdict(episode)
            for step in tree["steps"]:
                step["screenshot"] = _hash(step["screenshot"])
            index.append(tree)
        _write(archive, _INDEX, json.dumps(index, indent=0).encode())


def load(path: Path = EPISODES) -> list[RecordedEpisode]:
    """What :func:`save` wrote."""
    with zipfile.ZipFile(path) as archive:
        index = json.loads(archive.read(_INDEX))
        for tree in index:
            tree["steps"] = tuple(
                RecordedStep(**{**step, "screenshot": archive.read(f"{step['screenshot']}.png")})
                for step in tree["steps"]
            )
    return [RecordedEpisode(**tree) for tree in index]


def _hash(png: bytes) -> str:
    return hashlib.sha256(png).hexdigest()[:16]


def _write(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Without the time of writing: the same episodes give the same bytes."""
    archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, 9)
