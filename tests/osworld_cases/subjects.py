"""All cases by subject, as tasks of the published form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.osworld_cases import (
    documents,
    pictures,
    screens,
    settings,
    similar,
    slides,
    tables,
    texts,
)
from tests.osworld_cases.case import Case, File


@dataclass(frozen=True, kw_only=True)
class Subject:
    """``home`` are files that several cases share."""

    cases: Sequence[Case]
    home: Sequence[File] = ()


SUBJECTS = {
    "texts": Subject(cases=texts.CASES),
    "documents": Subject(cases=documents.CASES),
    "tables": Subject(cases=tables.CASES, home=tables.HOME),
    "slides": Subject(cases=slides.CASES),
    "pictures": Subject(cases=pictures.CASES),
    "similar": Subject(cases=similar.CASES, home=similar.HOME),
    "settings": Subject(cases=settings.CASES, home=settings.HOME),
    "screens": Subject(cases=screens.CASES, home=screens.HOME),
}


def folder_of(name: str, index: int) -> str:
    """Of a case's own files, in the home and among the golds."""
    return f"{name}-{index:02}"


def evaluator(side: str, chosen: Iterable[tuple[str, int]]) -> dict[str, Any]:
    """One of several cases, in the published form: 1 says that all are right, and on the other side
    the reward is that of the best."""
    entries = [_entry(name, index, side) for name, index in chosen]
    keys = ("func", "result", "expected", "options")
    columns = {key: [entry[key] for entry in entries] for key in keys}
    return {"conj": "and" if side == "right" else "or", **columns}


def _entry(name: str, index: int, side: str) -> dict[str, Any]:
    case, folder = SUBJECTS[name].cases[index], folder_of(name, index)
    result = case.wrong_result if side == "wrong" and case.wrong_result else case.result
    return {
        "func": case.metric,
        "result": result or _files(case, f"{side}-{folder}", folder),
        "expected": case.expected or _golds(case, folder),
        "options": dict(case.options),
    }


def _files(case: Case, prefix: str, folder: str) -> dict[str, Any]:
    names = [file.path for file in case.files]
    # The suite of a task imports a module by its name.
    plain = case.metric == "check_python_file_by_test_suite"
    dests = names if plain else [f"{prefix}-{name}" for name in names]
    return _getter("vm_file", [f"{folder}/{name}" for name in names], dests, case.gives)


def _golds(case: Case, folder: str) -> dict[str, Any] | None:
    if not case.golds:
        return None
    names = [gold.name for gold in case.golds]
    dests = [f"gold-{folder}-{name}" for name in names]
    urls = [f"http://gold/{folder}/{name}" for name in names]
    return _getter("cloud_file", urls, dests, case.gives)


def _getter(kind: str, paths: list[str], dests: list[str], gives: bool) -> dict[str, Any]:
    if len(paths) == 1:
        return {"type": kind, "path": paths[0], "dest": dests[0]}
    given = {"gives": list(range(len(paths)))} if gives else {}
    return {"type": kind, "path": paths, "dest": dests, "multi": "true", **given}


def cases_of(name: str) -> list[tuple[str, int]]:
    return [(name, index) for index in range(len(SUBJECTS[name].cases))]


ALL = [chosen for name in SUBJECTS for chosen in cases_of(name)]


ELSEWHERE = {
    "metrics": {"infeasible", "is_expected_tabs"},
    "getters": {"cache_file", "open_tabs_info"},
}
"""In ``test_osworld_env``, ``test_desktop_ports`` (a real Chromium), and a test of their own."""


def metrics() -> set[str]:
    return {SUBJECTS[name].cases[i].metric for name, i in ALL} | ELSEWHERE["metrics"]


def getters() -> set[str]:
    """That the cases look through."""
    made = evaluator("right", ALL)
    found = {entry["type"] for entry in (*made["result"], *made["expected"]) if entry}
    return found | ELSEWHERE["getters"]


def table_rules() -> set[str]:
    """Kinds of rules of ``compare_table``."""
    return {rule["type"] for i in tables.CASES for rule in i.options.get("rules", [])}
