"""Random clicking: the floor that a trained policy is compared with."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping
from typing import Any

from dart_gui.agent.geometry import Geometry, ImageLimits
from dart_gui.agent.grammar import render
from dart_gui.errors import PolicyError
from dart_gui.types import Click, Completion, Point, SamplingParams

INSTRUCTION_BAR_PX = 50  # height of MiniWoB's yellow bar, in which nothing can be clicked


class RandomPolicy:
    """Answers every prompt with a left click, uniform over the pixels below the instruction bar.

    It goes through the same episode loop and the same grammar as a model does, and looks at nothing
    but the size of the newest screenshot. A reply is a function of ``sampling.seed``.
    """

    def __init__(self, limits: ImageLimits, *, top: int = INSTRUCTION_BAR_PX) -> None:
        self._limits = limits
        self._top = top

    async def complete(
        self,
        messages: list[dict[str, Any]],
        images: Mapping[str, bytes],
        sampling: SamplingParams,
        *,
        trajectory_id: str,
    ) -> Completion:
        hashes = _image_hashes(messages)
        if not hashes:
            raise PolicyError(f"the prompt of {trajectory_id} holds no screenshot")
        width, height = png_size(images[hashes[-1]])
        rng = random.Random(sampling.seed)
        top = self._top if self._top < height else 0
        point = Point(rng.randrange(width), rng.randrange(top, height))
        geometry = Geometry(width, height, self._limits)
        return Completion(
            text=render("Click somewhere.", [Click(point=point)], geometry),
            prompt_ids=[],
            response_ids=[],
            rollout_logprobs=[],
            entropies=[],
            image_hashes=hashes,
            finish_reason="stop",
            policy_version=0,
            worker_id="random",
            sampling=sampling,
        )

    async def served_version(self) -> int:
        return 0


def png_size(png: bytes) -> tuple[int, int]:
    """(width, height) in pixels, from the header alone.

    Raises:
        ValueError: not a PNG.
    """
    if png[:8] != b"\x89PNG\r\n\x1a\n" or png[12:16] != b"IHDR" or len(png) < 24:
        raise ValueError(f"expected a PNG image, got {png[:16]!r}")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def _image_hashes(messages: list[dict[str, Any]]) -> list[str]:
    """sha256 of each image of a prompt, in order."""
    return [
        part["image_url"]["url"].removeprefix("sha256:")
        for message in messages
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image_url"
    ]
