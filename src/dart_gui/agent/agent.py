"""The agent: from observations to prompts, from replies to actions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from dart_gui.agent.geometry import Geometry, ImageLimits
from dart_gui.agent.grammar import ParsedReply, parse
from dart_gui.agent.history import HistoryWindow, Message, Turn
from dart_gui.agent.prompts import disarm_control_tokens, user_prompt
from dart_gui.agent.syntax import strip_end_tokens
from dart_gui.agent.transforms import Transform, identity, load_transform
from dart_gui.config import AgentConfig
from dart_gui.types import Observation


@dataclass(frozen=True, slots=True)
class Prompt:
    messages: list[Message]
    images: dict[str, bytes]  # sha256 -> PNG, those that the messages name


class Agent:
    """What the model of one folder is shown and how its replies are read. Shared by all episodes.
    Of a model without a folder, which is served elsewhere, the limits of its images are enough.

    An agent of your own is a subclass, named by ``agent.name``: override ``first_prompt`` for other
    words, ``parse`` for another grammar, ``start`` for another conversation.

    Raises:
        SetupError: ``model`` is a path and not a model folder.
        ConfigError: one of its files makes no sense.
    """

    def __init__(self, model: Path | ImageLimits, config: AgentConfig) -> None:
        self.limits = ImageLimits.from_model(model) if isinstance(model, Path) else model
        self.transform = load_transform(model) if isinstance(model, Path) else identity
        self.window = HistoryWindow(config.max_images, config.max_texts, config.trim)
        self.language = config.language

    def start(self, observation: Observation) -> Conversation:
        """A new episode, which has already seen its first observation."""
        text = self.first_prompt(observation.instruction)
        conversation = Conversation(text, self.window, self.limits, self.transform, self.parse)
        conversation.see(observation)
        return conversation

    def first_prompt(self, instruction: str) -> str:
        """The text of the first user message, which comes before the first screenshot."""
        return user_prompt(instruction, self.language)

    def parse(self, reply: str, geometry: Geometry) -> ParsedReply:
        """The actions of a reply, in pixels of the screen. Must not raise: what is wrong with the
        reply is told to the model as ``ParsedReply.error``."""
        return parse(reply, geometry)


class Conversation:
    """One episode: ``see``, ``prompt``, ``hear``, and again."""

    def __init__(
        self,
        instruction_text: str,
        window: HistoryWindow,
        limits: ImageLimits,
        transform: Transform,
        parse: Callable[[str, Geometry], ParsedReply] = parse,
    ) -> None:
        self._instruction_text = instruction_text
        self._window = window
        self._limits = limits
        self._transform = transform
        self._parse = parse
        self._turns: list[Turn] = []
        self._images: dict[str, bytes] = {}
        self._geometry: Geometry | None = None
        self._next_note: str | None = None

    @property
    def images(self) -> Mapping[str, bytes]:
        """sha256 -> PNG of every screenshot so far, as the model saw it."""
        return MappingProxyType(self._images)

    def see(self, observation: Observation) -> None:
        """Take in what the environment shows now."""
        png = self._transform(observation.screenshot)
        image_hash = hashlib.sha256(png).hexdigest()
        self._images[image_hash] = png
        self._geometry = Geometry(observation.width, observation.height, self._limits)
        self._turns.append(Turn(image_hash, note=self._next_note))
        self._next_note = None

    def prompt(self) -> Prompt:
        """The next prompt. Raises ValueError where the last screenshot was answered already."""
        messages = self._window.messages(self._instruction_text, self._turns)
        names = [
            part["image_url"]["url"].removeprefix("sha256:")
            for message in messages
            if message["role"] == "user"
            for part in message["content"]
            if part["type"] == "image_url"
        ]
        return Prompt(messages, {name: self._images[name] for name in names})

    def hear(self, reply: str) -> ParsedReply:
        """Record the reply to the newest screenshot and read it.

        Tokens that structure a prompt are disarmed in the record: a sampled ``<|image_pad|>`` must
        not ask the next prompt for an image.

        Raises:
            ValueError: the newest screenshot was answered already.
        """
        if self._geometry is None or self._turns[-1].reply is not None:
            raise ValueError("a reply needs a screenshot that was not answered yet")
        record = disarm_control_tokens(strip_end_tokens(reply))
        self._turns[-1] = replace(self._turns[-1], reply=record)
        parsed = self._parse(reply, self._geometry)
        if parsed.error is not None:
            note = f"The last reply could not be parsed: {parsed.error}"
            self._next_note = disarm_control_tokens(note)
        return parsed
