"""``docs/osworld.md`` says what is exercised: it is checked against what the tests do."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from dart_gui.env.osworld.tasks import STEP_KINDS, Need
from tests.osworld_cases import subjects, usage

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "osworld.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return TEXT.split(f"## {title}\n")[1].split("\n## ")[0]


def names(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


def test_each_set_up_step_has_one_row() -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", section("Set-up steps"), re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(STEP_KINDS)


def test_the_exercised_steps_are_those_of_the_tests() -> None:
    tests = (ROOT / "tests" / "integration" / "test_osworld_env.py").read_text(encoding="utf-8")
    used = set(re.findall(r'step\(\s*"(\w+)"', tests))
    rows = re.findall(r"^\| (`[^|]*`) \| (\w+)", section("Set-up steps"), re.MULTILINE)
    exercised = {name for row, word in rows if word in ("yes", "refused") for name in names(row)}
    # Exercised by the functions that do them: what a step of these adds is the way there.
    alone = {"update_browse_history", "chrome_open_tabs", "chrome_close_tabs"}
    for function in ("fill_history", "chrome.open_tabs", "chrome.close_tabs"):
        assert f"{function}(" in tests
    assert exercised == used | alone


def exercised(title: str) -> list[str]:
    """The names of the second column."""
    rows = re.findall(r"^\| `\w+` \|([^|]*)\|", section(title), re.MULTILINE)
    return sorted(name for row in rows for name in re.findall(r"`(\w+)`", row))


def test_the_exercised_metrics_and_getters_are_those_of_the_tests() -> None:
    assert exercised("Metrics") == sorted(subjects.metrics())
    assert exercised("Getters") == sorted(subjects.getters())
    rules = section("Metrics").split("that are exercised: ")[1].split(";")[0]
    assert names(rules) == subjects.table_rules()


def test_those_that_no_case_has_are_in_the_tests_that_have_them() -> None:
    texts = "".join(
        (ROOT / "tests" / "integration" / f"test_{name}.py").read_text(encoding="utf-8")
        for name in ("osworld_env", "osworld_metrics", "desktop_ports")
    )
    for kind in ("metrics", "getters"):
        assert all(f'"{name}"' in texts for name in subjects.ELSEWHERE[kind])


def test_how_many_tasks_use_only_what_is_exercised() -> None:
    known, every = usage.exercised(usage.stored())
    assert f"**{known} of {every} default tasks use only" in " ".join(TEXT.split())


def test_the_stored_usage_is_that_of_the_published_tasks() -> None:
    folder = os.environ.get("DART_OSWORLD_TASKS")
    if not folder:
        pytest.skip("DART_OSWORLD_TASKS does not name a copy of OSWorld's evaluation_examples")
    assert usage.usage(Path(folder)) == usage.stored()


def test_what_tasks_need_is_listed() -> None:
    for need in Need:
        assert need.value in " ".join(TEXT.split())
