"""What both sides do, and how the parent process speaks with them.

Environment i plays one task, episode after episode: reset to a seed, then clicks at points that
depend on task, seed and number of the click alone, until the task ends or ``MAX_STEPS`` clicks are
made. Every step takes a screenshot.

A side is a child process. It writes ``{"ready": true}``, then answers each line ``{"run_s": ...}``
on its standard input with a :class:`Tally` once that time is over, and ends when its input ends.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

MAX_STEPS = 8
TOP = 50  # pixels of the instruction bar, in which nothing can be clicked
WIDTH, HEIGHT = 160, 210


@dataclass(slots=True)
class Tally:
    num_steps: int = 0
    num_episodes: int = 0
    wall_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    run_s: float
    num_envs: int = 1  # of those that the process has
    with_dom: bool = True  # of the official environment

    def line(self) -> str:
        return json.dumps(asdict(self))


def clicks(task: str, seed: int) -> Iterator[tuple[int, int]]:
    rng = random.Random(f"{task}/{seed}")
    for _ in range(MAX_STEPS):
        yield rng.randrange(WIDTH), rng.randrange(TOP, HEIGHT)


def task_of(index: int, tasks: list[str]) -> str:
    return tasks[index % len(tasks)]


def seeds_of(index: int) -> Iterator[int]:
    """Of the episodes of environment ``index``, without end; no two environments share one."""
    seed = 1_000_000 * (index + 1)
    while True:
        yield seed
        seed += 1


class Pipe:
    """The child's end. Whatever libraries print goes to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def serve(self, run: Callable[[Order], Tally]) -> None:
        self._tell({"ready": True})
        for line in sys.stdin:
            self._tell(asdict(run(Order(**json.loads(line)))))

    def _tell(self, value: dict[str, Any]) -> None:
        self._out.write(json.dumps(value) + "\n")
