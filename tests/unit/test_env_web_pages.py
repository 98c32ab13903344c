"""A suite of one's own pages: what is asked of the folder, the site and the reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dart_gui.env.browser.web_pages import Reward, State, WebPages, page_suite, to_evaluation
from dart_gui.env.suites import Suite
from dart_gui.errors import ConfigError
from dart_gui.types import Evaluation, Task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pages = tmp_path / "my pages"
    pages.mkdir()
    for name in ("b.html", "a.html", "notes.txt"):
        (pages / name).write_text(name)
    return pages


def test_each_html_file_is_a_task(folder: Path) -> None:
    suite = page_suite("own", folder)
    assert suite.task_ids == suite.default_tasks == ("own/a", "own/b")


def test_tasks_may_share_a_page(folder: Path) -> None:
    suite = page_suite("own", folder, tasks={"easy": "a.html?level=1", "hard": "a.html?level=2"})
    assert suite.task_ids == ("own/easy", "own/hard")
    assert page_suite("own", folder, tasks=["b"]).task_ids == ("own/b",)
    assert page_suite("own", folder, default_tasks=["b"]).default_tasks == ("own/b",)


def test_the_version_is_that_of_the_content(folder: Path) -> None:
    def version() -> str:
        return page_suite("own", folder).env_version

    before = version()
    assert before == version()
    assert page_suite("own", folder, size=(320, 210)).env_version != before
    (folder / "notes.txt").write_text("notes.TXT")
    assert version() != before
    assert page_suite("own", folder, version="3").env_version.startswith("own-3+")


@pytest.mark.parametrize(
    ("pages", "more", "text"),
    [
        ("nothing", {}, "is not a folder"),
        (".", {}, r"there is no \.html file"),
        ("my pages", {"tasks": ["c"]}, r"the page of own/c: there is no file .*c\.html"),
        ("my pages", {"tasks": {"c": "d.html?x=1"}}, r"there is no file .*d\.html$"),
        ("http://127.0.0.1:1", {"tasks": {"a": ""}}, "needs a version"),
        ("http://127.0.0.1:1", {"version": "1"}, "needs tasks"),
        ("my pages", {"default_tasks": ["z"]}, "no task 'own/z'"),
    ],
)
def test_what_is_missing_is_named(
    folder: Path, pages: str, more: dict[str, Any], text: str
) -> None:
    place = pages if pages.startswith("http") else folder.parent / pages
    with pytest.raises(ConfigError, match=text):
        page_suite("own", place, **more)


def test_a_site_is_a_url_and_its_pages() -> None:
    suite = page_suite("site", "http://127.0.0.1:8000/x", tasks={"t": "p?q=1"}, version="1")
    assert isinstance(suite, Suite)
    assert suite.env_version == "site-1+160x210.v1"


@pytest.mark.parametrize(
    ("reward", "success", "expected"),
    [
        (1, None, Evaluation(reward=1.0, success=True)),
        (0.5, None, Evaluation(reward=0.5, success=False)),
        (0.5, True, Evaluation(reward=0.5, success=True)),
        (0, False, Evaluation(reward=0.0, success=False)),
    ],
)
def test_success_is_a_full_reward_unless_said(
    reward: float, success: bool | None, expected: Evaluation
) -> None:
    assert to_evaluation(reward, success) == expected


@pytest.mark.parametrize("reward", [None, "1", True, float("nan"), float("inf"), -0.1, 1.1])
def test_a_reward_is_a_number_between_0_and_1(reward: object) -> None:
    with pytest.raises(ValueError, match=r"expected a number in \[0, 1\]"):
        to_evaluation(reward, None)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (None, Evaluation(reward=0.25, success=False)),
        (lambda task, state: state["n"] / 4, Evaluation(reward=0.5, success=False)),
        (lambda task, state: float(task.seed == 7), Evaluation(reward=1.0, success=True)),
        (
            lambda task, state: Evaluation(reward=0.5, success=True),
            Evaluation(reward=0.5, success=True),
        ),
    ],
)
async def test_the_reward_is_the_pages_own_or_a_function(
    reward: Reward | None, expected: Evaluation
) -> None:
    pages = WebPages(name="s", home="file:///", urls={}, screen=(1, 1), reward=reward)
    state: State = {"done": True, "n": 2, "reward": 0.25}
    assert await pages.evaluate(Task(task_id="s/a", seed=7), state) == expected
