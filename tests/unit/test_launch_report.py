from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from dart_gui import metrics
from dart_gui.config import Config
from dart_gui.launch import pinned, run_folder
from dart_gui.launch.plots import RunCurves, moving_average
from dart_gui.launch.progress import Progress
from dart_gui.launch.report import format_rate, gains, success_table, write_report
from dart_gui.launch.run_folder import RunFolder
from dart_gui.launch.tensorboard import TensorBoardSink, scalars
from dart_gui.types import WeightsRef


def train_step(step: int, at: float, elapsed_s: float) -> dict[str, Any]:
    return {
        "event": "train_step",
        "at": at,
        "train_step": step,
        "elapsed_s": elapsed_s,
        "loss": 0.1,
        "entropy": 0.5,
        "kl_rollout": 1e-6,
        "step_s": 3.0,
        "wait_s": 1.0,
        "num_samples": 40,
        "staleness_mean": 0.5,
        "staleness_max": 2,
        "num_skipped_updates": int(step == 2),
        "selected_fraction": 0.8,
        "num_borrowed": 1,
        "borrowed_weight": 0.1,
        "trained_tasks": {"miniwob/a": 8},
        "staleness_buckets": {"0": {"ess": 1.0}, "2": {"ess": 0.7}},
    }


def evaluation(phase: str, temperature: float, rate: float) -> dict[str, Any]:
    rates = {"success_rate": rate, "low": rate - 0.05, "high": rate + 0.05, "num_episodes": 400}
    return {
        "event": "eval",
        "phase": phase,
        "temperature": temperature,
        **rates,
        "per_task": {"miniwob/a": rates},
    }


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = run_folder.create(Config(), tmp_path / "r1")
    events: list[dict[str, Any]] = [evaluation("floor", 0.0, 0.06)]
    events += [evaluation("before", 1.0, 0.25), evaluation("before", 0.0, 0.30)]
    events += [train_step(step, 1000.0 + 4 * step, 4.0 * step) for step in range(1, 6)]
    events += [
        {
            "event": "episode",
            "at": 1000.0 + i,
            "task_id": f"miniwob/{'ab'[i % 2]}",
            "success": i > 10,
            "stop_reason": "done",
            "group_size": 4 + i // 10,
            "max_steps": 3,
        }
        for i in range(20)
    ]
    fates = {"skipped": 6, "trained": 4}
    flow = {
        fate: {"num_trajectories": num, "mean_steps": 2.0 if fate == "skipped" else 2.5}
        for fate, num in fates.items()
    }
    events += [{"event": "data_flow", "tasks": {"miniwob/a": flow}}]
    events += [{"event": "runner", "at": 1003.0, "env_utilisation": 0.9}]
    events += [{"event": "process", "name": "runner", "state": "backoff"}]
    events += [evaluation("after", 1.0, 0.60), evaluation("after", 0.0, 0.55)]
    folder.metrics.write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def test_the_report_of_a_run(run: RunFolder) -> None:
    text = write_report(run, Config()).read_text()
    assert "| train steps | 5 (1 skipped) |" in text
    assert "| training episodes | 20 |" in text
    assert "| processes started again | runner 1 |" in text
    assert "| staleness at most | 2 (limit 3) |" in text
    assert (
        "random floor | before, sampled | before, greedy | after, sampled | after, greedy" in text
    )
    assert "| **all** | 6.0 (1.0-11.0) | 25.0 (20.0-30.0) |" in text
    assert "- sampled: 25.0 % before, 60.0 % after: +35.0 points" in text
    assert "| miniwob/a | 10 | 6 | 0 | 4 | 2.2 | 2.5 |" in text  # (6 * 2 + 4 * 2.5) / 10
    for name in ("success", "tasks", "training", "throughput", "curation"):
        assert f"(plots/{name}.png)" in text
        assert (run.plots / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_stopped_early_has_a_report_too(tmp_path: Path) -> None:
    folder = run_folder.create(Config(), tmp_path / "r1")
    text = write_report(folder, Config()).read_text()
    assert "| training episodes | 0 |" in text
    assert "No evaluation has been made" in text
    folder.metrics.write_text(json.dumps({"event": "episode", "at": 5.0, "success": True}) + "\n")
    assert "plots/success.png" in write_report(folder, Config()).read_text()


def test_only_what_was_measured_has_a_column() -> None:
    table = success_table([evaluation("before", 1.0, 0.25)])
    assert table.splitlines()[0] == "| task | before, sampled |"
    assert gains({"before, sampled": evaluation("before", 1.0, 0.25)}) == []
    assert format_rate({}) == "-"


def test_training_time_leaves_out_a_pause() -> None:
    # Two steps at 60 and 120 s of training; an hour in between while the run was stopped.
    curves = RunCurves([train_step(1, 1060.0, 60.0), train_step(2, 4720.0, 120.0)])
    at = [{"at": 1000.0}, {"at": 1030.0}, {"at": 1060.0}, {"at": 4720.0}, {"at": 5000.0}]
    assert curves.minutes_of(at).tolist() == [0.0, 0.5, 1.0, 2.0, 2.0]
    assert curves.train_steps_of(at).tolist() == [0.0, 0.5, 1.0, 2.0, 2.0]


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(1, 70))
def test_the_moving_average_is_the_mean_of_the_last_ones(values: list[float], window: int) -> None:
    got = moving_average(np.array(values), window)
    assert len(got) == len(values)
    for i, value in enumerate(got):
        last = values[max(0, i + 1 - window) : i + 1]
        assert math.isclose(value, sum(last) / len(last), abs_tol=1e-9)


def test_tensorboard_gets_the_same_figures(tmp_path: Path) -> None:
    progress = Progress()
    events = [
        train_step(3, 1000.0, 12.0),
        {"event": "episode", "at": 1001.0, "task_id": "a", "success": True, "num_steps": 2},
        evaluation("after", 1.0, 0.5),
    ]
    sink = TensorBoardSink(tmp_path / "tensorboard")
    found: dict[str, tuple[float, int]] = {}
    for event in events:
        progress.fold(event)
        sink.write([event], progress)
        found |= {tag: (value, step) for tag, value, step in scalars(event, progress)}
    sink.close()
    assert found["train/loss"] == (0.1, 3)
    assert found["episodes/success_rate"] == (1.0, 1)
    assert found["eval/after_temperature_1"] == (0.5, 0)
    files = list((tmp_path / "tensorboard").iterdir())
    assert len(files) == 1
    written = [
        (value.tag, event.step)
        for event in EventFileLoader(str(files[0])).Load()
        for value in event.summary.value
    ]
    assert set(written) == {(tag, step) for tag, (_, step) in found.items()}


def test_the_report_reads_what_the_writer_wrote(tmp_path: Path) -> None:
    folder = run_folder.create(Config(), tmp_path / "r1")
    writer = metrics.MetricsWriter(folder.metrics, "runner", clock=lambda: 7.0)
    writer.log("episode", task_id="a", success=False, stop_reason="max_steps")
    writer.close()
    assert "| episodes ended by | max_steps 1 |" in write_report(folder, Config()).read_text()


def test_the_report_names_the_best_the_reason_and_the_alarms(run: RunFolder) -> None:
    events = [
        evaluation("during", 1.0, 0.40) | {"policy_version": 2, "train_step": 2},
        evaluation("during", 1.0, 0.50) | {"policy_version": 4, "train_step": 4},
        {"event": "alarm", "at": 0.0, "alarm": "idle", "subject": "runner", "state": "raised"},
        {"event": "stop", "cause": "run.target_success", "text": "the target is reached"},
    ]
    with run.metrics.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    weights = run.path / "weights"
    weights.mkdir()
    one = pinned.pin(run, WeightsRef(policy_version=4, path=str(weights)), train_step=4)
    assert one is not None
    pinned.keep_best(run, one, events[1])
    text = write_report(run, Config()).read_text()
    assert "| training ended | the target is reached |" in text
    assert "| 2 | 2 | 40.0 (35.0-45.0) | 400 |" in text
    assert "| 4 | 4 | **50.0 (45.0-55.0)** | 400 |" in text
    assert "The best is kept: checkpoints/best, policy version 4 of train step 4: 50.0" in text
    assert "| idle runner | raised |" in text


def test_a_run_that_trains_has_not_ended(run: RunFolder) -> None:
    with run.metrics.open("a") as file:
        for event in ({"event": "stop", "text": "enough"}, {"event": "trainer_start"}):
            file.write(json.dumps(event) + "\n")
    assert "| training ended | not yet |" in write_report(run, Config()).read_text()


def test_evaluations_while_training_stand_where_their_weights_were_trained() -> None:
    steps = [train_step(step, 1000.0 + 60 * step, 60.0 * step) for step in range(1, 6)]
    during = evaluation("during", 1.0, 0.5) | {"train_step": 3, "at": 1290.0}
    found, minutes, at_steps = RunCurves([*steps, during]).during()
    assert len(found) == 1
    assert (minutes.tolist(), at_steps.tolist()) == ([3.0], [3.0])


def test_alarms_are_curves_of_tensorboard() -> None:
    event = {"event": "alarm", "alarm": "idle", "subject": "rollout w0", "state": "raised"}
    assert list(scalars(event, Progress())) == [("alarms/idle/rollout_w0", 1.0, 0)]
    cleared = event | {"state": "cleared"}
    assert list(scalars(cleared, Progress())) == [("alarms/idle/rollout_w0", 0.0, 0)]
