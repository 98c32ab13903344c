"""One metric of OSWorld on a result that is right and on a near miss.

Imported by the tests and by the interpreter that has ``desktop-env``, which makes the files: makers
import what they make them with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Maker = Callable[[Path, Any], None]
_SAME: Any = object()


@dataclass(frozen=True, kw_only=True)
class File:
    """In the desktop, at a path from its home; ``None`` is a file that is not there."""

    path: str
    make: Maker
    right: Any
    wrong: Any


@dataclass(frozen=True, kw_only=True)
class Gold:
    """That the result is compared with."""

    name: str
    make: Maker
    content: Any


@dataclass(frozen=True, kw_only=True)
class Case:
    """``result`` and ``expected`` are getters of the published form, but for files and golds, which
    are named where the test has them."""

    metric: str
    files: tuple[File, ...] = ()
    golds: tuple[Gold, ...] = ()
    gives: bool = False  # the metric gets the list of files, not the first
    result: Mapping[str, Any] | None = None  # None: the files
    wrong_result: Mapping[str, Any] | None = None  # where the near miss is not in a file
    expected: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    below: float = 0.0  # the near miss earns as much at most


def rule(rules: Any) -> dict[str, Any]:
    return {"type": "rule", "rules": rules}


def text(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")


def alike(
    metric: str,
    name: str,
    make: Maker,
    right: Any,
    wrong: Any,
    *,
    gold: Any = _SAME,
    below: float = 0.0,
    **options: Any,
) -> Case:
    """Compared with a file: the right one, or ``gold``."""
    return Case(
        metric=metric,
        files=(File(path=name, make=make, right=right, wrong=wrong),),
        golds=(Gold(name=name, make=make, content=right if gold is _SAME else gold),),
        options=options,
        below=below,
    )


def ruled(metric: str, name: str, make: Maker, right: Any, wrong: Any, rules: Any = None) -> Case:
    """A file by a rule, or by the metric alone."""
    return Case(
        metric=metric,
        files=(File(path=name, make=make, right=right, wrong=wrong),),
        expected=None if rules is None else rule(rules),
    )


def printed(metric: str, right: str, wrong: str, rules: Any = None, *, below: float = 0.0) -> Case:
    """What a command prints."""
    return Case(
        metric=metric,
        result=_printing(right),
        wrong_result=_printing(wrong),
        expected=None if rules is None else rule(rules),
        below=below,
    )


def _printing(words: str) -> dict[str, Any]:
    return {"type": "vm_command_line", "command": ["printf", "%s", words]}


def got(
    metric: str, getter: Mapping[str, Any], rules: Any, *, wrong: Mapping[str, Any] | None = None
) -> Case:
    """By a getter that looks at what the desktop of that side has."""
    return Case(metric=metric, result=getter, wrong_result=wrong, expected=rule(rules))
