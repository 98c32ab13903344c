from __future__ import annotations

from pathlib import Path

import pytest

from dart_gui.config import Config
from dart_gui.launch import plan, run_folder
from dart_gui.launch.parser import build_parser
from dart_gui.launch.progress import Progress
from dart_gui.launch.run_folder import RunFolder
from dart_gui.launch.stopping import Stop, StopCause
from dart_gui.types import WeightsRef


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return run_folder.create(Config(), tmp_path / "r1")


def test_before_training_only_what_is_missing_is_evaluated() -> None:
    progress = Progress()
    assert [(job.phase, job.temperature) for job in plan.jobs_before(Config(), progress)] == [
        ("floor", 0.0),
        ("before", 1.0),
        ("before", 0.0),
    ]
    progress.fold({"event": "eval", "phase": "floor", "temperature": 0.0})
    progress.fold({"event": "eval", "phase": "before", "temperature": 1.0})
    assert [job.temperature for job in plan.jobs_before(Config(), progress)] == [0.0]
    progress.fold({"event": "train_step", "train_step": 1})
    assert plan.jobs_before(Config(), progress) == []


def test_evaluation_can_be_left_out(folder: RunFolder) -> None:
    config = Config.model_validate({"eval": {"before_after": False}})
    assert plan.jobs_before(config, Progress()) == []
    assert plan.jobs_after(folder, config, Progress()) == []


def test_a_finished_run_is_opened_again_by_a_raised_limit(folder: RunFolder) -> None:
    config = Config()
    progress = Progress()
    assert not plan.is_finished(folder, config, progress)
    plan.mark_trained(folder, config, Stop(StopCause.TIME, "1200 s of training are over"))
    folder.set_status("trainer", {"train_step": 9, "finished": True})
    assert plan.is_trained(folder, config)
    assert not plan.is_finished(folder, config, progress)
    for temperature in (1.0, 0.0):
        progress.fold(
            {"event": "eval", "phase": "after", "temperature": temperature, "train_step": 9}
        )
    assert plan.is_finished(folder, config, progress)
    raised = Config.model_validate({"run": {"max_time_s": 2400.0}})
    assert not plan.is_finished(folder, raised, progress)


def test_evaluations_of_an_earlier_end_do_not_count(folder: RunFolder) -> None:
    progress = Progress()
    progress.fold({"event": "eval", "phase": "after", "temperature": 1.0, "train_step": 9})
    folder.set_status("trainer", {"train_step": 20, "finished": True})
    jobs = plan.jobs_after(folder, Config(), progress)
    assert [(job.temperature, job.train_step) for job in jobs] == [(1.0, 20), (0.0, 20)]


def test_other_stop_criteria_open_a_finished_run_too(folder: RunFolder) -> None:
    config = Config.model_validate({"run": {"target_success": 0.5}})
    stop = Stop(StopCause.TARGET, "reached")
    plan.mark_trained(folder, config, stop)
    assert plan.is_trained(folder, config)
    assert plan.why_trained(folder) == stop
    assert not plan.is_trained(folder, Config())


def test_a_run_with_weights_to_evaluate_is_not_finished(folder: RunFolder) -> None:
    config = Config.model_validate({"eval": {"before_after": False, "every": 3}})
    plan.mark_trained(folder, config, Stop(StopCause.TIME, "over"))
    assert plan.is_finished(folder, config, Progress())
    (folder.pinned / "v000003-step-000003").mkdir(parents=True)
    assert not plan.is_finished(folder, config, Progress())


def test_the_arguments_of_an_evaluation_of_pinned_weights() -> None:
    job = plan.EvalJob(
        phase="during",
        temperature=1.0,
        train_step=7,
        weights=WeightsRef(policy_version=8, path="/runs/r1/pinned/v8"),
    )
    args = build_parser().parse_args(["evaluator", "--run-dir", "r1", *job.arguments])
    assert (args.phase, args.train_step, args.policy_version) == ("during", 7, 8)
    assert str(args.weights) == "/runs/r1/pinned/v8"
