"""The benchmarks' parts that need processes: both sides of the browser, and the crowd of episodes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks import processes
from benchmarks.browser.contestants import Contestant, Official, Ours, closing
from benchmarks.browser.workload import MAX_STEPS, Order
from benchmarks.episodes.play import Settings, play

ROOT = Path(__file__).resolve().parents[2]
TASKS = ["click-test-2", "click-collapsible"]


def check_rounds(side: Contestant, num_envs: int) -> None:
    for _ in range(2):  # frozen and thawed in between
        measured = side.run(Order(run_s=1.0, num_envs=num_envs))
        assert measured.steps_per_s > 0
        assert measured.cpu_ms_per_step > 0
        assert 0 < measured.browser_pss_mib_per_env < measured.pss_mib_per_env
    assert measured.steps_per_episode <= MAX_STEPS * num_envs


@pytest.mark.browser
def test_our_side_runs_rounds_and_leaves_nothing_behind() -> None:
    with closing(Ours(TASKS, 2)) as side:
        check_rounds(side, 2)
    left = [each.command for each in processes.all_processes().values()]
    assert not any("benchmarks.browser.ours" in command for command in left)


@pytest.mark.browser
def test_official_side_runs_rounds_with_and_without_dom() -> None:
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("the official environment needs chromium and chromedriver on PATH")
    with closing(Official(TASKS, 1, browser=browser, driver=driver)) as side:
        check_rounds(side, 1)
        assert side.run(Order(run_s=1.0, with_dom=False)).steps_per_s > 0


@pytest.mark.browser
def test_a_side_that_cannot_start_says_why() -> None:
    with (
        pytest.raises(RuntimeError, match="no task 'miniwob/no-such-page'"),
        closing(Ours(["no-such-page"], 1)) as side,
    ):
        side.run(Order(run_s=1.0))


@pytest.mark.parametrize("with_ledger", [False, True])
def test_all_episodes_are_under_way_at_once(with_ledger: bool) -> None:
    settings = Settings(
        num_episodes=24,
        num_steps=3,
        answer_s=0.05,
        num_ended=24,
        with_ledger=with_ledger,
        model=str(ROOT / "models" / "tiny-agent"),
    )
    played = play(settings)
    assert played.most_at_once == 24
    assert played.num_failed == 0
    assert played.num_stored >= 24
    assert played.num_steps >= 24 * 3
    assert played.cpu_us_per_step > 0
