"""``docs/osworld.md`` says what is exercised: it is checked against what the tests do."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from dart_gui.env.osworld.tasks import STEP_KINDS, Need

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "osworld.md").read_text(encoding="utf-8")
sys.path.insert(0, str(ROOT / "tests" / "data"))
from osworld_metric_cases import METRICS  # noqa: E402

sys.path.remove(str(ROOT / "tests" / "data"))


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


def test_the_exercised_metrics_are_those_of_the_tests() -> None:
    assert names(section("Metrics").partition("Not exercised")[0]) >= set(METRICS)
    listed = section("Metrics").split("earn 0:")[1].split("\n\n")[0]
    assert names(listed) == set(METRICS)


def test_what_tasks_need_is_listed() -> None:
    for need in Need:
        assert need.value in " ".join(TEXT.split())
