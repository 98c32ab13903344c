"""Which screenshots and replies the next prompt still shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dart_gui.agent.prompts import SYSTEM_PROMPT

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """A screenshot and the reply to it; the newest turn has no reply yet.

    ``note`` is what the agent is told along with the screenshot, e.g. that its last reply could not
    be parsed.
    """

    image_hash: str  # sha256 of the PNG, hexadecimal
    reply: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class HistoryWindow:
    """At most ``max_images`` screenshots and ``max_texts`` earlier replies, the newest ones.

    ``slide`` drops the oldest at each step, as UI-TARS was served. ``block`` lets them grow to the
    maximum and then drops to half of it at once: in between, each prompt begins with the one
    before it.

    A turn that loses its reply loses its screenshot and its note's reason too, so it disappears. A
    turn that only loses its screenshot keeps its reply, and its note if it has one; two replies can
    then follow each other, as in UI-TARS.
    """

    max_images: int
    max_texts: int
    trim: Literal["slide", "block"] = "slide"

    def __post_init__(self) -> None:
        if self.max_images < 1 or self.max_texts < 1:
            raise ValueError(f"a history window needs at least one image and one text, got {self}")

    def messages(self, instruction_text: str, turns: Sequence[Turn]) -> list[Message]:
        """OpenAI chat messages that end with the newest screenshot.

        Images are named by hash: ``{"type": "image_url", "image_url": {"url": "sha256:<hex>"}}``.

        Raises:
            ValueError: there is no turn, an earlier turn has no reply, or the newest one has.
        """
        _check_turns(turns)
        first_reply = self._num_dropped(len(turns) - 1, self.max_texts)
        first_image = max(first_reply, self._num_dropped(len(turns), self.max_images))
        content: list[Message] = [{"type": "text", "text": instruction_text}]
        messages: list[Message] = [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": content},
        ]
        for index in range(first_reply, len(turns)):
            turn = turns[index]
            # The first turn that is left follows the instruction directly: it joins that message.
            parts = _user_parts(turn, note=index > first_reply, image=index >= first_image)
            if index == first_reply:
                content += parts
            elif parts:
                messages.append({"role": "user", "content": parts})
            if turn.reply is not None:
                messages.append({"role": "assistant", "content": turn.reply})
        return messages

    def _num_dropped(self, num: int, limit: int) -> int:
        """How many of ``num`` items, the oldest ones, are gone."""
        excess = max(0, num - limit)
        if self.trim == "slide":
            return excess
        block = limit + 1 - max(1, limit // 2)
        return -(-excess // block) * block


def _check_turns(turns: Sequence[Turn]) -> None:
    if not turns or turns[-1].reply is not None or any(turn.reply is None for turn in turns[:-1]):
        raise ValueError(
            "a prompt needs turns that all have a reply but the newest, got replies "
            f"{[turn.reply is not None for turn in turns]}"
        )


def _user_parts(turn: Turn, *, note: bool, image: bool) -> list[Message]:
    parts: list[Message] = []
    if note and turn.note is not None:
        parts.append({"type": "text", "text": turn.note})
    if image:
        parts.append({"type": "image_url", "image_url": {"url": f"sha256:{turn.image_hash}"}})
    return parts
