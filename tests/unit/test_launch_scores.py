"""Figures of trials, by hand."""

from __future__ import annotations

import json

import pytest

from dart_gui.env.suites import domain_in_id
from dart_gui.launch import scores
from dart_gui.launch.osworld_results import Score
from dart_gui.runner.evaluate import Outcome
from dart_gui.runner.trials import Trial
from dart_gui.types import StopReason, Task


def score(task_id: str, seed: int, reward: float | None, *, steps: int = 2) -> Score:
    reason = StopReason.ENV_ERROR if reward is None else StopReason.DONE
    outcome = Outcome(stop_reason=reason, num_steps=steps, reward=reward, success=reward == 1.0)
    return Score(
        trial=Trial(Task(task_id=task_id, seed=seed)), outcome=outcome, wall_s=1.0, message=""
    )


@pytest.fixture
def summary() -> scores.Summary:
    """Task a: instance 0 with 1 of 3, instance 1 with 2 of 2 and a failure. Task b: 0 of 1, 2 to come."""
    a, b = "osw/os/a", "osw/chrome/b"
    return scores.summarise(
        {
            a: [
                *(score(a, 0, reward, steps=4) for reward in (1.0, 0.0, 0.5)),
                *(score(a, 1, reward, steps=2) for reward in (1.0, 1.0, None)),
            ],
            b: [score(b, 0, 0.0, steps=6), None, None],
        },
        num_repeats=3,
        domain_of=domain_in_id,
    )


def test_figures_of_a_task(summary: scores.Summary) -> None:
    figures = summary.by_task["osw/os/a"]
    success = figures.result.success
    assert (success.num_episodes, success.num_successes) == (5, 3)
    assert figures.result.mean_reward == pytest.approx(3.5 / 5)
    assert figures.result.mean_steps == pytest.approx((3 * 4 + 2 * 2) / 5)
    assert (figures.result.num_failed, figures.result.failures) == (1, {"env_error": 1})
    assert figures.num_instances == 2
    # pass@1: (1/3 + 1) / 2; pass@2: (1 - C(2,2)/C(3,2) + 1) / 2 = (2/3 + 1) / 2; pass@3 is known of
    # the first instance alone, where one of three succeeded
    assert figures.pass_at == pytest.approx({1: 2 / 3, 2: 5 / 6, 3: 1.0})


def test_domains_all_and_what_is_missing(summary: scores.Summary) -> None:
    assert list(summary.by_domain) == ["chrome", "os"]
    assert summary.by_domain["os"] == summary.by_task["osw/os/a"]
    assert summary.overall.result.success.num_episodes == 6
    assert summary.overall.num_missing == 2
    # over instances, not over tasks: (1/3 + 1 + 0) / 3
    assert summary.overall.pass_at[1] == pytest.approx(4 / 9)
    assert summary.by_task["osw/chrome/b"].pass_at[2] is None


def test_written_figures(summary: scores.Summary) -> None:
    tree = json.loads(json.dumps(summary.to_json()))
    assert tree["overall"]["success"]["num_successes"] == 3
    assert tree["by_task"]["osw/os/a"]["pass_at"]["2"] == pytest.approx(5 / 6)
    text = scores.markdown("m on osw", {"model": "m"}, summary)
    assert "| osw/os/a | 5 | 60.0 (23.1-88.2) | 66.7 | 100.0 | 0.700 | 3.2 | 1 |" in text
    assert "| chrome | 1 | 0.0 (0.0-79.3) | 0.0 | - | 0.000 | 6.0 | 0 |" in text
    assert "2 episodes are still to be played" in text


def test_nothing_played_is_no_zero() -> None:
    empty = scores.summarise({"s/a": [None]}, num_repeats=1, domain_of=domain_in_id)
    assert scores.row("s/a", empty.overall) == ["s/a", "0", "-", "-", "-", "0"]
    assert scores.header("task", empty) == [
        *("task", "episodes", "success, % (95 %)", "reward", "steps", "failed")
    ]
