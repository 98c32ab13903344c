from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dart_gui.env.desktop.checks import METRICS
from dart_gui.env.desktop.mini import mini_tasks
from dart_gui.env.desktop.suite import SUITE, programs_of
from dart_gui.env.desktop.tasks import TaskFolder, draw, parse, substitute
from dart_gui.errors import ConfigError
from dart_gui.types import Press, Task, TypeText

RULE = {"type": "rule", "rules": {"expected": "x"}}
FILE = {"type": "vm_file", "path": "a.txt"}
# The form of a published task: a single check without lists.
PUBLISHED: dict[str, Any] = {
    "id": "1",
    "snapshot": "os",
    "instruction": "Do it.",
    "source": "somewhere",
    "config": [{"type": "execute", "parameters": {"command": ["true"]}}],
    "trajectory": "trajectories/",
    "related_apps": ["os"],
    "evaluator": {"func": "exact_match", "result": FILE, "expected": RULE},
    "proxy": False,
}


def changed(**evaluator: Any) -> dict[str, Any]:
    return PUBLISHED | {"evaluator": PUBLISHED["evaluator"] | evaluator}


def test_a_published_task_is_read() -> None:
    task = parse(PUBLISHED, task_id="s/1")
    assert task.instruction == "Do it."
    assert [step.kind for step in task.config] == ["execute"]
    (check,) = task.evaluator.checks
    assert (check.func, check.result, check.expected, check.options) == (
        "exact_match",
        FILE,
        RULE,
        {},
    )
    assert task.evaluator.every


def test_several_checks_are_lists_of_equal_length() -> None:
    lists: dict[str, Any] = {"result": [FILE, FILE], "expected": [RULE, RULE]}
    task = parse(changed(func=["exact_match"] * 2, conj="or", **lists), task_id="s/1")
    assert len(task.evaluator.checks) == 2
    assert not task.evaluator.every
    with pytest.raises(ConfigError, match="OSWorld's format"):
        parse(changed(func=["exact_match"], **lists), task_id="s/1")


@pytest.mark.parametrize(
    "text",
    [
        {},
        PUBLISHED | {"config": [{"type": "googledrive"}]},
        PUBLISHED | {"config": [{}]},
        PUBLISHED | {"config": 3},
        PUBLISHED | {"solution": [{"kind": "explode"}]},
        changed(func="compare_pptx_files"),
        changed(func="infeasible"),
        changed(result={"type": "active_tab_info"}),
        changed(conj="xor"),
        changed(result=None),
    ],
)
def test_what_cannot_be_done_is_refused_before_it_is_played(text: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="s/1"):
        parse(text, task_id="s/1")


def test_variables_are_drawn_by_task_and_seed() -> None:
    text = {"variables": {"word": ["a", "b", "c"], "number": [10, 99]}}
    tasks = [Task(task_id="s/1", seed=seed) for seed in range(200)]
    drawn = [draw(text, task) for task in tasks]
    assert drawn == [draw(text, task) for task in tasks]
    assert {values["word"] for values in drawn} == {"a", "b", "c"}
    assert all(10 <= int(values["number"]) <= 99 for values in drawn)
    assert draw(text, tasks[0]) == draw(text, tasks[0])
    other = [draw(text, Task(task_id="s/2", seed=seed)) for seed in range(200)]
    assert other != drawn


def test_variables_are_put_into_every_text() -> None:
    text = {"variables": {}, "a": ["{x} {y} {x}", {"b": "{x}"}, 3], "c": "${HOME} {print $1}"}
    expected = {"a": ["1 {y} 1", {"b": "1"}, 3], "c": "${HOME} {print $1}"}
    assert substitute(text, {"x": "1"}) == expected


def test_a_folder_is_a_suite(tmp_path: Path) -> None:
    solution = [{"kind": "type", "text": "{w}\n"}, {"kind": "press", "key": "enter"}]
    text = PUBLISHED | {"variables": {"w": ["one"]}, "solution": solution}
    (tmp_path / "first.json").write_text(json.dumps(text))
    folder = TaskFolder(tmp_path, name="own")
    assert folder.task_ids == ("own/first",)
    task = folder.instantiate(Task(task_id="own/first", seed=0))
    assert task.solution == (TypeText(text="one\n"), Press(key="enter"))
    with pytest.raises(ConfigError, match="own/second"):
        folder.check("own/second")
    (tmp_path / "broken.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"broken\.json"):
        TaskFolder(tmp_path, name="own")


def test_the_shipped_suite() -> None:
    folder = mini_tasks()
    assert len(folder.task_ids) >= 18
    for task_id in folder.task_ids:
        for seed in range(20):
            task = folder.instantiate(Task(task_id=task_id, seed=seed))
            assert task.solution
            assert task.near_miss
            assert task.solution != task.near_miss
            assert "{" not in task.instruction


@pytest.mark.parametrize(
    ("metric", "result", "argument", "score"),
    [
        ("exact_match", "x", {"expected": "x"}, 1),
        ("exact_match", b"x", {"expected": "x"}, 1),
        ("exact_match", "x\n", {"expected": "x"}, 0),
        ("exact_match", None, {"expected": "x"}, 0),
        ("is_in_list", ["a", "b"], {"expected": "b"}, 1),
        ("is_in_list", None, {"expected": "b"}, 0),
        ("match_in_list", "b", {"expected": ["a", "b"]}, 1),
        ("match_in_list", "c", {"expected": ["a", "b"]}, 0),
        ("check_include_exclude", "a b", {"include": ["a"], "exclude": ["c"]}, 1),
        ("check_include_exclude", "a c", {"include": ["a"], "exclude": ["c"]}, 0),
        ("check_include_exclude", "b", {"include": ["a"]}, 0),
        ("check_include_exclude", None, {"exclude": ["a"]}, 0),
        ("file_contains", b"a b", {"expected": ["a", "b"]}, 1),
        ("file_contains", b"a", {"expected": ["a", "b"]}, 0),
        ("compare_text_file", b"a", b"a", 1),
        ("compare_text_file", b"a", b"a\n", 0),
        ("compare_text_file", None, None, 0),
        ("check_csv", b"n,v\r\na,1\r\n", {"expect": [{"n": "a", "v": "1"}]}, 1),
        ("check_csv", b"n,v\na,1\n", {"expect": [{"n": "a", "v": "2"}]}, 0),
        ("check_csv", b"n,v\na,1\n", {"unexpect": [{"n": "a"}]}, 0),
    ],
)
def test_metrics(metric: str, result: Any, argument: Any, score: float) -> None:
    assert METRICS[metric](result, argument) == score


def test_white_space_can_be_ignored() -> None:
    assert METRICS["compare_text_file"](b"a  b\n", b"a b", ignore_blanks=True) == 1
    assert METRICS["compare_text_file"](b"ab", b"a b", ignore_blanks=True) == 0


def test_the_suite_is_over_several_applications_and_not_all_are_everywhere() -> None:
    domains = Counter(SUITE.domain_of(task_id) for task_id in SUITE.task_ids)
    assert domains == {
        "terminal": 14,
        "mousepad": 7,
        "thunar": 2,
        "libreoffice_calc": 2,
        "libreoffice_impress": 1,
        "libreoffice_writer": 1,
    }
    assert {SUITE.domain_of(task_id) for task_id in SUITE.default_tasks} == {"terminal", "mousepad"}
    tasks = mini_tasks()
    assert programs_of(tasks, "desktop-mini/files-new-folder") == {"thunar"}
    assert programs_of(tasks, "desktop-mini/impress-delete-slide") == {"loimpress"}
