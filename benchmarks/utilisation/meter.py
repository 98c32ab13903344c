"""Where the seconds of an episode go."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum


class Part(StrEnum):
    MODEL = "model"  # the desktop waits for the answer
    WAIT = "fixed wait"
    BOOT = "boot"  # until a desktop is there; of a spare, a look whether it still answers
    SET_UP = "set-up"
    ACTION = "action"
    SETTLE = "settling"  # until the screen has reacted and rests, observed
    SHOT = "screenshot"  # grab, encoding, transfer
    TREE = "accessibility tree"
    EVALUATION = "evaluation"
    END = "end"


IDLE = frozenset({Part.MODEL, Part.WAIT})
"""Parts in which the environment does no work; ``SETTLE`` is counted either way."""


class Meter:
    """Seconds by part. What is measured within another part is taken from it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.seconds: defaultdict[Part, float] = defaultdict(float)

    @contextmanager
    def measure(self, part: Part) -> Iterator[None]:
        began, inside = self._clock(), sum(self.seconds.values())
        yield
        inner = sum(self.seconds.values()) - inside
        self.seconds[part] += self._clock() - began - inner

    def move(self, source: Part, target: Part, seconds: float) -> None:
        """Seconds that were measured as ``source`` and were something else in part."""
        moved = min(seconds, self.seconds[source])
        self.seconds[source] -= moved
        self.seconds[target] += moved
