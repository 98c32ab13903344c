"""Tasks in OSWorld's JSON: what to set up, what to say, what to look at in the end.

The format is that of ``evaluation_examples`` of OSWorld: ``id``, ``instruction``, ``config`` (set-up
steps) and ``evaluator``. Three keys are ours, and gone when a task is instantiated or unknown to
OSWorld: ``variables`` (what ``{name}`` stands for in every text, drawn by the seed), ``solution`` and
``near_miss`` (typed actions that earn 1 and 0).
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from dart_gui.env.desktop.checks import GETTERS, METRICS
from dart_gui.errors import ConfigError
from dart_gui.types import Action, Task

ACTIONS = TypeAdapter[list[Action]](list[Action])
STEP_TYPES = frozenset(
    {
        *("execute", "command", "launch", "open", "sleep", "activate_window", "close_window"),
        *("execute_with_verification", "change_wallpaper", "upload_file", "wait"),
    }
)
NOT_HERE = "it needs OSWorld's own evaluation, which is not part of this suite"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupStep:
    """One entry of ``config`` or ``postconfig``."""

    kind: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One metric, with the getters of its arguments."""

    func: str
    result: Mapping[str, Any]
    expected: Mapping[str, Any] | None
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    checks: tuple[Check, ...]
    every: bool  # all of them ("and"), or one is enough ("or")
    postconfig: tuple[SetupStep, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DesktopTask:
    """One instance of a task."""

    task_id: str
    instruction: str
    config: tuple[SetupStep, ...]
    evaluator: Evaluator
    related_apps: tuple[str, ...] = ()
    solution: tuple[Action, ...] = ()  # earns 1
    near_miss: tuple[Action, ...] = ()  # earns 0


class TaskSource(Protocol):
    def check(self, task_id: str) -> str:
        """``task_id`` itself. Raises ``ConfigError`` where there is no such task."""
        ...

    def instantiate(self, task: Task) -> DesktopTask:
        """Raises ``ConfigError`` where there is no such task."""
        ...


class TaskFolder:
    """The tasks in a folder of JSON files; ``<name>/<file's stem>`` is a task's id.

    Raises:
        ConfigError: a file is no task, or asks for what we do not have.
    """

    def __init__(self, folder: Path, *, name: str) -> None:
        self._name = name
        self._texts: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.glob("*.json")):
            self._texts[f"{name}/{path.stem}"] = read_object(path)
        for task_id in self._texts:
            self.instantiate(Task(task_id=task_id, seed=0))

    @property
    def task_ids(self) -> tuple[str, ...]:
        return tuple(self._texts)

    def check(self, task_id: str) -> str:
        if task_id not in self._texts:
            raise ConfigError(
                f"there is no task {task_id!r} among the {len(self._texts)} of the suite {self._name}"
            )
        return task_id

    def instantiate(self, task: Task) -> DesktopTask:
        text = self._texts[self.check(task.task_id)]
        return parse(substitute(text, draw(text, task)), task_id=task.task_id)


def draw(text: Mapping[str, Any], task: Task) -> dict[str, str]:
    """What each variable stands for in the instance of ``task``: a list names the choices, two numbers
    a range, both ends included."""
    rng = random.Random(f"{task.task_id}:{task.seed}")
    values: dict[str, str] = {}
    for name, choices in text.get("variables", {}).items():
        if len(choices) == 2 and all(isinstance(bound, int) for bound in choices):
            values[name] = str(rng.randint(*choices))
        else:
            values[name] = str(rng.choice(choices))
    return values


def substitute(value: Any, values: Mapping[str, str]) -> Any:
    """``value`` with ``{name}`` replaced in every text within; other braces stay."""
    if isinstance(value, str):
        for name, text in values.items():
            value = value.replace(f"{{{name}}}", text)
        return value
    if isinstance(value, list):
        return [substitute(item, values) for item in value]
    if isinstance(value, dict):
        return {key: substitute(item, values) for key, item in value.items() if key != "variables"}
    return value


def parse(text: Mapping[str, Any], *, task_id: str) -> DesktopTask:
    """Raises ``ConfigError`` where it is no task of OSWorld's format, or needs what we lack."""
    try:
        return DesktopTask(
            task_id=task_id,
            instruction=str(text["instruction"]),
            config=_steps(text.get("config", [])),
            evaluator=_evaluator(text["evaluator"]),
            related_apps=tuple(text.get("related_apps", [])),
            solution=tuple(ACTIONS.validate_python(text.get("solution", []))),
            near_miss=tuple(ACTIONS.validate_python(text.get("near_miss", []))),
        )
    except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
        raise ConfigError(
            f"the task {task_id} is not of OSWorld's format: {type(error).__name__}: {error}"
        ) from None


def _steps(entries: list[Mapping[str, Any]]) -> tuple[SetupStep, ...]:
    steps = tuple(
        SetupStep(kind=entry["type"], parameters=entry.get("parameters", {})) for entry in entries
    )
    for step in steps:
        if step.kind not in STEP_TYPES:
            raise ValueError(f"there is no set-up step {step.kind!r} here: {NOT_HERE}")
    return steps


def _evaluator(entry: Mapping[str, Any]) -> Evaluator:
    """OSWorld writes a single check without lists, several as lists of equal length."""
    funcs = entry["func"]
    if isinstance(funcs, str):
        lists = [[funcs], [entry["result"]], [entry.get("expected")], [entry.get("options")]]
    else:
        none = [None] * len(funcs)
        lists = [funcs, entry["result"], entry.get("expected", none), entry.get("options", none)]
    checks = tuple(
        Check(func=func, result=result, expected=expected, options=options or {})
        for func, result, expected, options in zip(*lists, strict=True)
    )
    for check in checks:
        if check.func not in METRICS:
            raise ValueError(f"there is no metric {check.func!r} here: {NOT_HERE}")
        for getter in [check.result] + ([check.expected] if check.expected else []):
            if getter["type"] not in GETTERS:
                raise ValueError(f"there is no getter {getter['type']!r} here: {NOT_HERE}")
    conj = entry.get("conj", "and")
    if conj not in ("and", "or"):
        raise ValueError(f"conj is 'and' or 'or', got {conj!r}")
    postconfig = _steps(entry.get("postconfig", []))
    return Evaluator(checks=checks, every=conj == "and", postconfig=postconfig)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a task or a list of tasks. Raises ``ConfigError`` where it is none."""
    try:
        text = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    if not isinstance(text, dict):
        raise ConfigError(f"{path} is not a JSON object")
    return text
