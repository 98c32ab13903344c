"""Task names and seeds."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from dart_gui.env.browser.miniwob import REUSABLE_PAGES, TaskState, html_dir, page_url
from dart_gui.env.browser.miniwob_tasks import page_name
from dart_gui.env.suites import (
    EVAL_SEEDS,
    TRAIN_SEEDS,
    Suite,
    domain_in_id,
    eval_seed,
    get_suite,
    train_seed,
)
from dart_gui.errors import ConfigError
from dart_gui.fakes import FakeCluster
from dart_gui.types import Evaluation

SUITE = get_suite("miniwob")


def test_the_tasks_are_those_that_the_package_registers_outside_flight() -> None:
    spec = find_spec("miniwob")
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).with_name("registration.py").read_text()
    registered = set(re.findall(r'id="(miniwob/[^"]+)-v1"', source))
    assert {task for task in registered if "/flight." not in task} == set(SUITE.task_ids)
    assert len(SUITE.task_ids) == 125
    assert list(SUITE.task_ids) == sorted(SUITE.task_ids)


def test_every_task_has_a_page() -> None:
    for task_id in SUITE.task_ids:
        assert page_url(task_id).startswith("file:///")
        assert (html_dir() / f"{page_name(task_id)}.html").is_file()


def test_the_default_tasks_are_eight_of_them() -> None:
    assert len(set(SUITE.default_tasks)) == 8
    assert set(SUITE.default_tasks) <= set(SUITE.task_ids)
    assert {f"miniwob/{page}" for page in REUSABLE_PAGES} <= set(SUITE.task_ids)


def test_the_version_names_the_package() -> None:
    assert re.fullmatch(r"miniwob-\d+\.\d+\.\d+\+\S+", SUITE.env_version)


@pytest.mark.parametrize("name", ["miniwob/click-tset", "click-test", "miniwob/Click-Test"])
def test_an_unknown_task_names_the_nearest(name: str) -> None:
    with pytest.raises(ConfigError, match=r"did you mean miniwob/click-test\?"):
        SUITE.check(name)


def test_an_unknown_suite_names_the_nearest_and_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"did you mean miniwob\?.* The suites are: desktop-mini, miniwob"
    ):
        get_suite("miniwop")


def test_what_is_no_suite_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"env.suite = 'math:pi' is a float, expected a"):
        get_suite("math:pi")


@pytest.mark.parametrize(
    ("task_ids", "default_tasks", "text"),
    [
        ((), (), "needs task ids"),
        (("s/a", "s/a"), (), "each once"),
        (("s/a", "t/b"), (), r"are s/<task>; got 't/b'"),
        (("s/",), (), "got 's/'"),
        (("s/a",), ("s/b",), "no task 's/b'"),
    ],
)
def test_a_suite_refuses_names_that_make_no_sense(
    task_ids: tuple[str, ...], default_tasks: tuple[str, ...], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        Suite(
            name="s",
            task_ids=task_ids,
            default_tasks=default_tasks,
            env_version="1",
            open_cluster=lambda config: FakeCluster(),
        )


def test_seeds_for_training_and_evaluation_are_disjoint() -> None:
    assert TRAIN_SEEDS[-1] + 1 == EVAL_SEEDS[0] == 2**30
    rng = random.Random(0)
    assert all(train_seed(rng) in TRAIN_SEEDS for _ in range(100))
    assert [eval_seed(i) for i in range(3)] == [2**30, 2**30 + 1, 2**30 + 2]


@pytest.mark.parametrize("index", [-1, 2**30])
def test_there_are_only_so_many_evaluation_seeds(index: int) -> None:
    with pytest.raises(IndexError):
        eval_seed(index)


@pytest.mark.parametrize(
    ("done", "raw", "expected"),
    [
        (True, 1.0, Evaluation(reward=1.0, success=True)),
        (True, 0.5, Evaluation(reward=0.5, success=False)),
        (True, 0.0, Evaluation(reward=0.0, success=False)),
        (True, -1.0, Evaluation(reward=0.0, success=False)),
        (True, 1.5, Evaluation(reward=1.0, success=True)),
        (False, 1.0, Evaluation(reward=0.0, success=False)),
    ],
)
def test_reward_is_the_raw_reward_of_a_finished_episode(
    done: bool, raw: float, expected: Evaluation
) -> None:
    assert TaskState(done, raw).evaluation() == expected


def test_the_suites_import_nothing_heavy() -> None:
    code = (
        "import sys; from dart_gui.env.suites import SUITES, get_suite; "
        "SUITES.known(), get_suite('miniwob'); "
        "print([name for name in ('playwright', 'miniwob', 'selenium', 'gymnasium', 'torch') "
        "if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("suite", "task_id", "domain"),
    [
        ("miniwob", "miniwob/click-test", "miniwob"),
        ("desktop-mini", "desktop-mini/rename-file", "terminal"),
        ("desktop-mini", "desktop-mini/calc-sum", "libreoffice_calc"),
    ],
)
def test_the_domain_of_a_task(suite: str, task_id: str, domain: str) -> None:
    assert get_suite(suite).domain_of(task_id) == domain


def test_a_domain_between_suite_and_task() -> None:
    assert domain_in_id("osworld/chrome/12ab") == "chrome"
