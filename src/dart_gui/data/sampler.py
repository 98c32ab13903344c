"""The task sampler: which (task_id, seed) a new group attempts, and how an episode is seeded.

Every draw is a pure function of the run's seed and the group's number, so that a restarted run goes
on with the sequence that it left.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Protocol

from dart_gui.errors import ConfigError
from dart_gui.types import Task


class Sampler(Protocol):
    @property
    def seed(self) -> int:
        """The run's seed."""
        ...

    @property
    def task_ids(self) -> Sequence[str]:
        """All tasks that there are to choose from."""
        ...

    def sample(self, number: int) -> Task:
        """The task of the group with this number (0, 1, ...)."""
        ...

    def instance(self, task_id: str, number: int) -> Task:
        """The instance of ``task_id`` that the group with this number attempts."""
        ...


class RoundRobinSampler:
    """Each task once per round, in an order that is shuffled anew for every round.

    ``train_seed`` draws a seed of the suite's training range (it keeps training and evaluation
    disjoint, which only the suite can know).
    """

    def __init__(
        self, task_ids: Sequence[str], *, seed: int, train_seed: Callable[[random.Random], int]
    ) -> None:
        if not task_ids:
            raise ConfigError("the task sampler has no tasks: name at least one in env.tasks")
        self._task_ids = list(task_ids)
        self._seed = seed
        self._train_seed = train_seed

    @property
    def seed(self) -> int:
        return self._seed

    @property
    def task_ids(self) -> Sequence[str]:
        return tuple(self._task_ids)

    def sample(self, number: int) -> Task:
        round_number, place = divmod(number, len(self._task_ids))
        order = list(self._task_ids)
        random.Random(stable_hash("task-order", self._seed, round_number)).shuffle(order)
        return self.instance(order[place], number)

    def instance(self, task_id: str, number: int) -> Task:
        draw = random.Random(stable_hash("task-seed", self._seed, number))
        return Task(task_id=task_id, seed=self._train_seed(draw))


def stable_hash(*parts: object) -> int:
    """63 bits that depend on the text of ``parts`` alone, not on the process or the machine."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def episode_seed(run_seed: int, episode_id: str, attempt: int) -> int:
    """Seed of an attempt's sampling: differs between members, attempts and runs (invariant 9)."""
    return stable_hash("episode", run_seed, episode_id, attempt)
