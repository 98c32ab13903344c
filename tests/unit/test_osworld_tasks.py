"""OSWorld's published format, on small tasks of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dart_gui.config import EnvConfig
from dart_gui.env.desktop.tasks import SetupStep
from dart_gui.env.osworld import suite as suite_module
from dart_gui.env.osworld.pythons import imports_of
from dart_gui.env.osworld.suite import osworld_suite
from dart_gui.env.osworld.tasks import HISTORY_URL, Need, OsworldFolder, needs_of, parse, urls_of
from dart_gui.env.suites import absolute_suite, get_suite
from dart_gui.errors import ConfigError, SetupError
from dart_gui.types import Task

RULE = {"type": "rule", "rules": {"expected": "x"}}
VM_FILE = {"type": "vm_file", "path": "/home/user/a.txt", "dest": "a.txt"}


def task(**changes: Any) -> dict[str, Any]:
    text: dict[str, Any] = {
        "id": "1",
        "snapshot": "os",
        "instruction": "Do it.",
        "source": "https://example.org/how",
        "config": [],
        "related_apps": ["os"],
        "evaluator": {"func": "exact_match", "result": VM_FILE, "expected": RULE},
    }
    return text | changes


def write(folder: Path, tasks: dict[str, dict[str, Any]], **lists: Any) -> Path:
    """``tasks`` by ``domain/id``."""
    for name, text in tasks.items():
        path = folder / "examples" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(text))
    for name, content in lists.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_folder_without_a_list_is_all_of_its_tasks(tmp_path: Path) -> None:
    tasks = OsworldFolder(write(tmp_path, {"os/b": task(), "gimp/a": task()}))
    assert tasks.task_ids == ("osworld/gimp/a", "osworld/os/b")
    one = tasks.instantiate(Task(task_id="osworld/gimp/a", seed=3))
    assert (one.domain, one.instruction, one.is_infeasible) == ("gimp", "Do it.", False)


def test_the_published_list_says_which_tasks_there_are(tmp_path: Path) -> None:
    write(tmp_path, {"os/a": task(), "os/b": task()}, test_all={"os": ["b"]}, mine={"os": ["a"]})
    assert OsworldFolder(tmp_path).task_ids == ("osworld/os/b",)
    assert OsworldFolder(tmp_path / "mine.json").task_ids == ("osworld/os/a",)


def test_a_list_with_a_task_that_is_not_there_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"os/a": task()}, mine={"os": ["gone"]})
    with pytest.raises(ConfigError, match=r"gone\.json"):
        OsworldFolder(tmp_path / "mine.json")
    with pytest.raises(ConfigError, match="evaluation_examples"):
        OsworldFolder(tmp_path / "examples")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"evaluator": {"func": ["a", "b"], "result": [VM_FILE]}}, "2 of func, and 1 of result"),
        ({"evaluator": {"func": "a"}}, "no result"),
        ({"evaluator": {"func": "a", "result": VM_FILE, "conj": "xor"}}, "xor"),
        ({"config": [{"type": "dance", "parameters": {}}]}, "no set-up step 'dance'"),
        ({"evaluator": None}, "OSWorld's format"),
    ],
)
def test_what_is_no_task_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(task(**changes), task_id="osworld/os/1")


def test_an_infeasible_task_needs_no_result() -> None:
    assert parse(task(evaluator={"func": "infeasible"}), task_id="osworld/os/1").is_infeasible


def test_urls_are_those_of_set_up_and_evaluation_each_once() -> None:
    files = [{"url": "http://h/1", "path": "/a"}, {"url": "http://h/2", "path": "/b"}]
    clouds = [
        {"type": "cloud_file", "path": "http://h/2", "dest": "2"},
        {
            "type": "cloud_file",
            "path": ["http://h/3", "http://h/4"],
            "dest": ["3", "4"],
            "multi": True,
        },
    ]
    text = task(
        config=[
            {"type": "download", "parameters": {"files": files}},
            {"type": "update_browse_history", "parameters": {"history": []}},
        ],
        evaluator={"func": ["a", "b"], "result": [VM_FILE] * 2, "expected": clouds},
    )
    assert urls_of(text) == ["http://h/1", "http://h/2", HISTORY_URL, "http://h/3", "http://h/4"]


def evaluated(func: str, getter: str) -> dict[str, Any]:
    return task(evaluator={"func": func, "result": {"type": getter}})


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        (task(), set()),
        (task(config=[{"type": "login", "parameters": {}}]), {Need.GOOGLE}),
        (task(config=[{"type": "chrome_open_tabs", "parameters": {}}]), {Need.WEB}),
        (task(proxy=True), {Need.PROXY}),
        (evaluated("compare_image_text", "vm_file"), {Need.OCR}),
        (evaluated("is_expected_tabs", "open_tabs_info"), set()),
        (evaluated("is_vlc_playing", "vlc_playing_info"), set()),
    ],
)
def test_needs(text: dict[str, Any], needs: set[Need]) -> None:
    assert needs_of(text) == needs


def test_the_suite_is_named_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = task(config=[{"type": "login", "parameters": {}}])
    write(tmp_path, {"os/a": task(), "chrome/b": login})
    suite = get_suite(f"osworld@{tmp_path}")
    assert suite.task_ids == ("osworld/chrome/b", "osworld/os/a")
    assert suite.default_tasks == ("osworld/os/a",)
    with pytest.raises(ConfigError, match="where the tasks are"):
        get_suite("osworld")
    monkeypatch.chdir(tmp_path)
    assert absolute_suite("osworld@lists/a.json") == f"osworld@{tmp_path}/lists/a.json"
    assert absolute_suite("miniwob") == "miniwob"


def test_a_changed_task_changes_the_version(tmp_path: Path) -> None:
    before = osworld_suite(str(write(tmp_path, {"os/a": task()}))).env_version
    assert osworld_suite(str(tmp_path)).env_version == before
    after = osworld_suite(str(write(tmp_path, {"os/a": task(instruction="Else.")}))).env_version
    assert after != before


def test_the_machine_is_checked_before_anything_starts(tmp_path: Path) -> None:
    download = {"type": "download", "parameters": {"files": [{"url": "http://h/1", "path": "/a"}]}}
    login = task(config=[{"type": "login", "parameters": {}}])
    write(tmp_path, {"os/a": task(config=[download]), "chrome/b": login})
    suite = osworld_suite(str(tmp_path))
    (tmp_path / "token").write_text("t")
    (tmp_path / "python").write_text("")
    config = EnvConfig(
        servers=["http://h"],
        server_token_file=str(tmp_path / "token"),
        osworld_python=str(tmp_path / "python"),
        osworld_cache=str(tmp_path / "cache"),
    )
    assert "1 OSWorld tasks, 0 of 1 files cached" in suite.check_machine(config)
    with pytest.raises(SetupError, match=r"needs a Google account"):
        suite.check_machine(config.model_copy(update={"tasks": ["osworld/chrome/b"]}))
    with pytest.raises(SetupError, match=r"dart-gui osworld mirror .* --cache"):
        suite.check_machine(config.model_copy(update={"osworld_offline": True}))
    with pytest.raises(SetupError, match=r"setup_osworld\.py"):
        suite.check_machine(config.model_copy(update={"osworld_python": "/nowhere"}))


def test_what_steps_import_is_read_from_their_programs() -> None:
    def step(*command: str) -> SetupStep:
        return SetupStep(kind="execute", parameters={"command": list(command)})

    steps = [
        step("python", "-c", "import pyautogui, time; pyautogui.click({SCREEN_WIDTH}, 5)"),
        step("python3", "-c", "from yaml.nodes import Node; import os.path"),
        step("python3", "script.py"),
        step("python3", "-c", "not a program"),
        step("mkdir", "import"),
        SetupStep(kind="sleep", parameters={"seconds": 1}),
    ]
    found = imports_of(steps)
    assert found == {"python": frozenset({"pyautogui"}), "python3": frozenset({"yaml"})}
    assert imports_of([step("python", "x.py")]) == {"python": frozenset()}


def test_tasks_whose_steps_a_desktop_of_this_machine_cannot_run_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite_module, "check_desktops", lambda config, programs: "here")
    (tmp_path / "python").write_text("")
    config = EnvConfig(provider="xvfb", osworld_python=str(tmp_path / "python"))

    def press(program: str) -> dict[str, Any]:
        step = {"type": "execute", "parameters": {"command": ["python", "-c", program]}}
        return task(evaluator=task()["evaluator"] | {"postconfig": [step]})

    write(tmp_path, {"os/a": press("import no_such_module_here"), "os/b": press("import json")})
    suite = osworld_suite(str(tmp_path))
    with pytest.raises(
        SetupError, match=r"no_such_module_here for python \(1 tasks\).*pip install"
    ):
        suite.check_machine(config)
    assert "1 OSWorld tasks" in suite.check_machine(
        config.model_copy(update={"tasks": ["osworld/os/b"]})
    )
    assert "here" in suite.check_machine(config.model_copy(update={"provider": "docker"}))
