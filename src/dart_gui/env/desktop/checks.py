"""What is looked at when an episode ends: getters and metrics of OSWorld that need no more than
files and output of commands, under OSWorld's names and with its meanings."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from dart_gui.env.desktop.client import GuestClient

COMMAND_S = 120.0
Getter = Callable[[GuestClient, Mapping[str, Any]], Awaitable[Any]]
Metric = Callable[..., float]


async def _vm_command_line(client: GuestClient, config: Mapping[str, Any]) -> str:
    return (await _run(client, config)).output


async def _vm_command_error(client: GuestClient, config: Mapping[str, Any]) -> str:
    return (await _run(client, config)).error


async def _run(client: GuestClient, config: Mapping[str, Any]) -> Any:
    shell = bool(config.get("shell", False))
    return await client.execute(config["command"], shell=shell, timeout_s=COMMAND_S)


async def _vm_file(client: GuestClient, config: Mapping[str, Any]) -> bytes | None:
    """The content of a file; OSWorld's metrics get the name of a copy."""
    return await client.read_file(config["path"])


async def _rule(_: GuestClient, config: Mapping[str, Any]) -> Any:
    return config["rules"]


async def _list_directory(client: GuestClient, config: Mapping[str, Any]) -> Any:
    return json.loads(await client.setup("/list_directory", {"path": config["path"]}))[
        "directory_tree"
    ]


GETTERS: Mapping[str, Getter] = {
    "vm_command_line": _vm_command_line,
    "vm_command_error": _vm_command_error,
    "vm_file": _vm_file,
    "rule": _rule,
    "list_directory": _list_directory,
}


def _exact_match(result: Any, rules: Mapping[str, Any]) -> float:
    return float(_text(result) == rules["expected"])


def _is_in_list(result: Any, rules: Mapping[str, Any]) -> float:
    return float(rules["expected"] in (result or ()))


def _match_in_list(result: Any, rules: Mapping[str, Any]) -> float:
    return float(_text(result) in rules["expected"])


def _check_include_exclude(result: Any, rules: Mapping[str, Any]) -> float:
    text = _text(result)
    if text is None:
        return 0.0
    return float(
        all(part in text for part in rules.get("include", []))
        and not any(part in text for part in rules.get("exclude", []))
    )


def _file_contains(result: Any, rules: Mapping[str, Any]) -> float:
    text = _text(result)
    return float(text is not None and all(part in text for part in rules["expected"]))


def _compare_text_file(result: Any, expected: Any, *, ignore_blanks: bool = False) -> float:
    """Two files of equal text; with ``ignore_blanks`` in all but white space."""
    one, other = _text(result), _text(expected)
    if one is None or other is None:
        return 0.0
    if ignore_blanks:
        one, other = " ".join(one.split()), " ".join(other.split())
    return float(one == other)


def _check_csv(result: Any, rules: Mapping[str, Any]) -> float:
    """Each of ``expect`` matches a row in all of its columns, each of ``unexpect`` none."""
    text = _text(result)
    if text is None:
        return 0.0
    rows = list(csv.DictReader(io.StringIO(text)))

    def found(wanted: Mapping[str, str]) -> bool:
        return any(all(row.get(key) == value for key, value in wanted.items()) for row in rows)

    return float(
        all(found(wanted) for wanted in rules.get("expect", []))
        and not any(found(wanted) for wanted in rules.get("unexpect", []))
    )


def _text(result: Any) -> Any:
    return result.decode("utf-8", "replace") if isinstance(result, bytes) else result


METRICS: Mapping[str, Metric] = {
    "exact_match": _exact_match,
    "is_in_list": _is_in_list,
    "match_in_list": _match_in_list,
    "check_include_exclude": _check_include_exclude,
    "file_contains": _file_contains,
    "compare_text_file": _compare_text_file,
    "check_csv": _check_csv,
}
