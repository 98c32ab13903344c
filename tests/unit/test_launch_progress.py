from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dart_gui.launch.progress import MetricsTail, Progress, eta_s, number


def episode(at: float, task: str = "a", success: bool = True) -> dict[str, Any]:
    return {"event": "episode", "at": at, "task_id": task, "success": success}


def train_step(step: int, **values: Any) -> dict[str, Any]:
    return {"event": "train_step", "train_step": step, "step_s": 3.0, "wait_s": 1.0, **values}


def test_the_tail_gives_each_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.read() == []
    path.write_text('{"event":"a"}\n{"event":"b"')
    assert [e["event"] for e in tail.read()] == ["a"]
    assert tail.read() == []
    with path.open("a") as file:
        file.write('}\nnot json\n[1]\n{"event":"c"}\n')
    assert [e["event"] for e in tail.read()] == ["b", "c"]


def test_success_over_the_window_and_per_task() -> None:
    progress = Progress()
    assert progress.success_rate is None
    for i in range(300):
        progress.fold(episode(float(i), task="a" if i % 2 else "b", success=i >= 150))
    # The last 200 episodes are 100..299, of which 150..299 succeeded.
    assert progress.success_rate == 0.75
    assert progress.success_by_task() == {"a": (1.0, 50), "b": (1.0, 50)}
    assert progress.num_episodes == 300


def test_rates_of_training() -> None:
    progress = Progress()
    assert progress.train_samples_per_s() is None
    for step in (1, 2):
        progress.fold(train_step(step, num_samples=40, elapsed_s=4.0 * step))
    assert progress.train_samples_per_s() == 10.0
    assert progress.trainer_utilisation() == 0.75
    assert progress.train_step_s() == 4.0
    assert progress.elapsed_s() == 8.0
    assert progress.train_step == 2


def test_episodes_per_minute() -> None:
    progress = Progress()
    assert progress.episodes_per_min(0.0) is None
    for i in range(10):
        progress.fold(episode(at=100.0 + 3 * i))
    # All ten within 30 s: the span is theirs, not the two minutes of the window.
    assert progress.episodes_per_min(130.0) == pytest.approx(20.0)
    # 90 s later three have left the window of 120 s.
    assert progress.episodes_per_min(228.0) == pytest.approx(60 * 7 / 120)


def test_the_newest_evaluation_counts() -> None:
    progress = Progress()
    for step, rate in ((10, 0.5), (20, 0.7)):
        progress.fold(
            {
                "event": "eval",
                "phase": "after",
                "temperature": 1,
                "train_step": step,
                "success_rate": rate,
            }
        )
    found = progress.eval_of("after", 1.0)
    assert found is not None
    assert found["success_rate"] == 0.7
    assert progress.eval_of("after", 1.0, train_step=10) is not None
    assert progress.eval_of("after", 1.0, train_step=30) is None
    assert progress.eval_of("after", 0.0) is None


@pytest.mark.parametrize("value", [None, "3", True, [], {}])
def test_what_is_no_number_counts_as_not_reported(value: Any) -> None:
    assert number(json.loads(json.dumps({"x": value})), "x") is None


def test_the_end_comes_with_the_first_limit() -> None:
    by_time = eta_s(elapsed_s=200, max_time_s=1200, train_step=5, max_train_steps=0, step_s=4)
    assert by_time == 1000
    by_steps = eta_s(elapsed_s=200, max_time_s=1200, train_step=5, max_train_steps=10, step_s=4)
    assert by_steps == 20
    late = eta_s(elapsed_s=1300, max_time_s=1200, train_step=5, max_train_steps=0, step_s=4)
    assert late == 0
