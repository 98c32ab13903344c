"""Stop criteria against series worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from dart_gui.config import Config
from dart_gui.launch.progress import WINDOW_EPISODES, Progress
from dart_gui.launch.stopping import Stop, StopCause, StopRules, by_limit, from_json


class Series:
    def __init__(self, *, every: int = 0, **run: Any) -> None:
        self.config = Config.model_validate({"run": run, "eval": {"every": every}})
        self.rules = StopRules(self.config)
        self.progress = Progress()

    def fold(self, event: dict[str, Any]) -> Stop | None:
        self.progress.fold(event)
        self.rules.fold(event, self.progress)
        return self.rules.decision()

    def evaluated(self, version: int, rate: float, **changes: Any) -> Stop | None:
        event = {
            "event": "eval",
            "phase": "during",
            "temperature": 1.0,
            "policy_version": version,
            "success_rate": rate,
            "num_episodes": 100,
        }
        return self.fold(event | changes)

    def trained(self, train_step: int, *successes: bool) -> Stop | None:
        for success in successes:
            self.fold({"event": "episode", "task_id": "t", "success": success})
        return self.fold({"event": "train_step", "train_step": train_step})


def test_the_target_is_reached_by_an_evaluation() -> None:
    series = Series(every=5, target_success=0.6)
    assert series.evaluated(5, 0.59) is None
    # Training episodes do not count where there are evaluations.
    assert series.trained(6, *[True] * WINDOW_EPISODES) is None
    # Nor do evaluations of another kind.
    assert series.evaluated(6, 0.9, phase="before") is None
    assert series.evaluated(6, 0.9, temperature=0.0) is None
    stop = series.evaluated(10, 0.6)
    assert stop is not None
    assert stop.cause is StopCause.TARGET
    assert stop.text == (
        "the target of 60 % is reached: 60.0 % in the evaluation of policy version 10 "
        "(100 episodes)"
    )


def test_without_evaluations_the_target_is_reached_by_a_full_window() -> None:
    series = Series(target_success=0.5)
    assert series.trained(1, *[True] * (WINDOW_EPISODES - 1)) is None, "the window is not full"
    assert series.evaluated(1, 1.0) is None, "eval.every is 0"
    stop = series.trained(2, False)
    assert stop is not None
    assert stop.text == (
        "the target of 50 % is reached: 99.5 % in the 200 training episodes before train step 2"
    )


def test_patience_counts_evaluations_without_progress() -> None:
    series = Series(every=5, patience=3, min_delta=0.02)
    assert series.evaluated(5, 0.40) is None
    assert series.evaluated(10, 0.41) is None  # within min_delta: 1
    assert series.evaluated(15, 0.42) is None  # not more than it: 2
    assert series.evaluated(20, 0.43) is None  # progress: 0
    assert series.evaluated(25, 0.43) is None
    assert series.evaluated(30, 0.20) is None
    stop = series.evaluated(35, 0.45)
    assert stop is not None
    assert stop.cause is StopCause.PATIENCE
    assert "no progress in 3 evaluations: the best was 43.0 % in" in stop.text
    assert "policy version 20" in stop.text


def test_without_evaluations_patience_counts_train_steps() -> None:
    series = Series(patience=2)
    assert series.trained(1) is None
    assert series.trained(2) is None
    assert series.trained(3) is None, "no window yet"
    # 100 of 200. What leaves the window first is a success.
    assert series.trained(4, *[True, False] * (WINDOW_EPISODES // 2)) is None
    assert series.trained(5, True) is None  # 100: 1
    # The failure leaves: 101, progress.
    assert series.trained(6, True) is None
    assert series.trained(7) is None
    stop = series.trained(8)
    assert stop is not None
    assert stop.cause is StopCause.PATIENCE
    assert stop.text.startswith("no progress in 2 train steps: the best was 50.5 %")


def test_criteria_that_are_off_never_stop() -> None:
    series = Series(every=1)
    assert [series.evaluated(version, 1.0) for version in range(1, 50)] == [None] * 49


def test_a_resumed_run_counts_on() -> None:
    """The rules are a fold over the file of events, whoever reads it."""
    first, second = Series(every=1, patience=2), Series(every=1, patience=2)
    for series in (first, second):
        assert series.evaluated(1, 0.5) is None
        assert series.evaluated(2, 0.5) is None
    assert second.evaluated(3, 0.5) is not None


def test_which_limit_it_was() -> None:
    config = Config.model_validate({"run": {"max_train_steps": 9, "max_time_s": 60.0}})
    assert by_limit(config, 9).cause is StopCause.STEPS
    assert by_limit(config, 8).cause is StopCause.TIME
    assert by_limit(Config(), 8).text == "1200 s of training are over"


@pytest.mark.parametrize("value", [None, {}, {"cause": "boredom", "text": ""}, {"cause": "x"}, []])
def test_a_reason_that_is_not_one_counts_as_none(value: object) -> None:
    assert from_json(value) is None


def test_a_reason_survives_its_file() -> None:
    stop = Stop(StopCause.TARGET, "reached")
    assert from_json(stop.to_json()) == stop
