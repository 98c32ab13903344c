"""Which suites and tasks there are, and which seeds are for training and which for evaluation."""

from __future__ import annotations

import difflib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dart_gui.config import EnvConfig
from dart_gui.env.protocol import EnvCluster
from dart_gui.errors import ConfigError
from dart_gui.registry import Registry, absolute

TRAIN_SEEDS = range(0, 2**30)
EVAL_SEEDS = range(2**30, 2**31)
"""Disjoint from ``TRAIN_SEEDS``: an instance that was evaluated on was never trained on. The same
ranges for every suite: one with a list of instances splits the list by range."""

SUITES = Registry(
    what="suite",
    key="env.suite",
    group="dart_gui.suites",
    builtin={
        "miniwob": "dart_gui.env.browser.miniwob_tasks:SUITE",
        "desktop-mini": "dart_gui.env.desktop.suite:SUITE",
        "osworld": "dart_gui.env.osworld.suite:osworld_suite",
    },
)

PLACED = frozenset({"osworld"})
"""Built-in suites whose tasks are in a folder of the user's."""


def _nothing_to_check(config: EnvConfig) -> str:
    return "nothing to check"


def domain_in_id(task_id: str) -> str:
    """``osworld/chrome/<id>`` is of the domain ``chrome``; a suite without such parts is one domain.

    >>> domain_in_id("osworld/chrome/12ab"), domain_in_id("miniwob/click-test")
    ('chrome', 'miniwob')
    """
    suite, *middle, _ = task_id.split("/")
    return middle[0] if middle else suite


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A family of tasks and how to have environments for them.

    Raises:
        ConfigError: a task id is not ``<name>/<task>``, there is none, or one comes twice.
    """

    name: str
    task_ids: tuple[str, ...]  # all, sorted; ``<name>/<task>``
    default_tasks: tuple[str, ...]  # what env.tasks = [] means
    env_version: str  # equal versions replay equally
    open_cluster: Callable[[EnvConfig], EnvCluster]  # not started
    check_machine: Callable[[EnvConfig], str] = _nothing_to_check
    """Says what the environments will run on, in a moment and without starting anything; raises
    ``SetupError`` where the machine lacks something."""
    domain_of: Callable[[str], str] = domain_in_id
    """What a task id is counted under in a table by domain, and its folder in OSWorld's layout."""

    def __post_init__(self) -> None:
        if not self.task_ids or len(set(self.task_ids)) < len(self.task_ids):
            raise ConfigError(
                f"the suite {self.name!r} needs task ids, each once; got {list(self.task_ids)}"
            )
        for task_id in self.task_ids:
            prefix, slash, rest = task_id.partition("/")
            if prefix != self.name or not slash or not rest:
                raise ConfigError(
                    f"the task ids of the suite {self.name!r} are {self.name}/<task>; "
                    f"got {task_id!r}"
                )
        for task_id in self.default_tasks:
            self.check(task_id)

    def check(self, task_id: str) -> str:
        """``task_id`` itself.

        Raises:
            ConfigError: there is no such task; the text names the nearest.
        """
        if task_id in self.task_ids:
            return task_id
        near = difflib.get_close_matches(task_id, self.task_ids, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"there is no task {task_id!r} among the {len(self.task_ids)} of the suite "
            f"{self.name}{hint}"
        )


def get_suite(reference: str) -> Suite:
    """The suite of a name, or of ``module:object`` or ``file.py:object``; see ``Registry``. One whose
    tasks are the user's is named with their place: ``osworld@FOLDER``.

    Raises:
        ConfigError: there is none, it cannot be imported, or it is no ``Suite``.
    """
    name, _, place = reference.partition("@")
    if name in PLACED:
        if not place:
            raise ConfigError(
                f"env.suite = {reference!r} does not say where the tasks are: name their folder, as in "
                f"{name}@/data/OSWorld/evaluation_examples, or a list of tasks in it"
            )
        made: object = SUITES.load(name)
        assert callable(made)
        found: object = made(place)
    else:
        found = SUITES.load(reference)
    if not isinstance(found, Suite):
        raise ConfigError(
            f"env.suite = {reference!r} is a {type(found).__name__}, expected a "
            "dart_gui.env.suites.Suite, such as page_suite() gives"
        )
    return found


def absolute_suite(reference: str) -> str:
    """``reference`` in the form that means the same in every working directory."""
    name, at, place = reference.partition("@")
    return f"{name}@{Path(place).absolute()}" if at and name in PLACED else absolute(reference)


def open_cluster(config: EnvConfig) -> EnvCluster:
    """The environments of the configured suite, not started. Raises ``ConfigError``."""
    return get_suite(config.suite).open_cluster(config)


def train_seed(rng: random.Random) -> int:
    """A seed for training, uniform over ``TRAIN_SEEDS``."""
    return rng.randrange(TRAIN_SEEDS.start, TRAIN_SEEDS.stop)


def eval_seed(index: int) -> int:
    """The ``index``-th seed for evaluation: the same held-out instances in every run.

    Raises:
        IndexError: ``index`` is negative or past the last one.
    """
    if index < 0:
        raise IndexError(f"evaluation seeds are counted from 0, got {index}")
    return EVAL_SEEDS[index]
