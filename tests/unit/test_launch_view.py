from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from dart_gui.config import Config
from dart_gui.launch.observe import Utilisation
from dart_gui.launch.process import ProcessState
from dart_gui.launch.progress import Progress
from dart_gui.launch.service import ServiceView, WorkerView, parse_status
from dart_gui.launch.view import PLAIN_EVERY_S, ProcessView, Snapshot, View, figures, plain_line


def service(*versions: int, busy_s: float = 0.0) -> ServiceView:
    workers = tuple(
        WorkerView(
            worker_id=f"w{i}",
            state="ready",
            policy_version=version,
            num_in_flight=3,
            busy_s=busy_s,
            restarts=0,
        )
        for i, version in enumerate(versions)
    )
    return ServiceView(workers=workers, desired_version=max(versions), queue_size=2)


def snapshot(**changes: Any) -> Snapshot:
    progress = Progress()
    for i in range(4):
        progress.fold(
            {"event": "episode", "at": 100.0 + i, "task_id": "miniwob/a", "success": i == 0}
        )
    progress.fold(
        {
            "event": "train_step",
            "at": 110.0,
            "train_step": 12,
            "elapsed_s": 300.0,
            "step_s": 3.0,
            "wait_s": 1.0,
            "num_samples": 80,
            "staleness_mean": 0.5,
            "staleness_max": 2,
            "entropy": 0.4321,
            "kl_rollout": 1e-6,
            "clip_fraction": 0.05,
        }
    )
    progress.fold({"event": "runner", "num_envs": 16, "num_envs_busy": 12, "env_utilisation": 0.81})
    values: dict[str, Any] = {
        "run_id": "r1",
        "phase": "training",
        "now": 130.0,
        "config": Config(),
        "progress": progress,
        "processes": [
            ProcessView(name="trainer", state=ProcessState.RUNNING, restarts=0),
            ProcessView(name="runner", state=ProcessState.BACKOFF, restarts=1),
        ],
        "service": service(11, 12),
        "worker_busy": {"w0": 0.9},
        "counts": {"open": 5, "complete": 2},
    }
    return Snapshot(**(values | changes))


def test_the_figures() -> None:
    shown = figures(snapshot())
    assert shown["success"] == "25 % of the last 4 episodes"
    assert shown["train step"] == "12"
    # Training goes on between train steps: 300 s, and 20 s since.
    assert shown["elapsed"] == "5:20 of 20:00"
    assert shown["ETA"] == "14:40"
    assert shown["staleness"] == "0.50 mean, 2 max (limit 3)"
    assert shown["samples"] == "20.0/s"
    assert shown["trainer"] == "75 %"
    assert shown["clipped"] == "5 %"
    assert shown["environments"] == "12/16 leased, 81 % of the last second"
    assert shown["workers"] == "w0 v11 ready 90 %, w1 v12 ready - (newest v12)"
    assert shown["queues"] == "requests 2, groups: 5 open 2 complete"


def test_time_stands_still_while_nothing_trains() -> None:
    stopped = [ProcessView(name="trainer", state=ProcessState.STOPPED, restarts=0)]
    assert figures(snapshot(processes=stopped))["elapsed"] == "5:00 of 20:00"


def test_a_run_that_has_just_begun_shows_no_figures_that_it_does_not_have() -> None:
    young = snapshot(progress=Progress(), processes=[], service=None, phase="starting")
    assert plain_line(young) == "starting"
    assert figures(young)["workers"] == "no answer"
    assert figures(young)["success"] == "- of the last 0 episodes"


def test_without_a_terminal_there_is_a_line_every_ten_seconds() -> None:
    output = io.StringIO()
    time = [0.0]
    with View(Console(file=output, width=400), now=lambda: time[0]) as view:
        for _ in range(4 * int(PLAIN_EVERY_S) + 1):
            view.show(snapshot())
            time[0] += 0.5
        view.show(snapshot(phase="stopping"))
    lines = output.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("training | elapsed 5:20 of 20:00 | train step 12 | success 25 %")
    assert "runner:backoff" in lines[0]
    assert "trainer:" not in lines[0]
    assert lines[-1].startswith("stopping")


def test_on_a_terminal_there_is_a_live_panel() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=110, height=50)
    with View(console, now=lambda: 0.0) as view:
        view.show(snapshot(detail="(1/2)"))
        view.say("a line [that] stays")
    shown = output.getvalue()
    for text in ("r1", "miniwob/a", "25 %", "w1 v12", "1 restarts", "a line [that] stays"):
        assert text in shown


def test_utilisation_is_the_share_between_two_looks() -> None:
    utilisation = Utilisation()
    utilisation.look(service(1, busy_s=10.0), now=100.0)
    assert utilisation.share == {}
    utilisation.look(service(1, busy_s=13.0), now=104.0)
    assert utilisation.share == {"w0": 0.75}
    # A replaced worker counts from 0 again.
    utilisation.look(service(1, busy_s=1.0), now=108.0)
    utilisation.look(None, now=110.0)
    utilisation.look(service(1, busy_s=2.0), now=112.0)
    assert utilisation.share == {"w0": 0.25}


def test_an_answer_that_is_no_status_counts_as_none() -> None:
    assert parse_status({"workers": [{"worker_id": "w0"}]}) is None
    assert parse_status({}) is None
    assert service(3, 4).ready_version == 3
    assert ServiceView(workers=(), desired_version=0, queue_size=0).ready_version is None


def test_evaluations_while_training_and_alarms_are_shown() -> None:
    shown = snapshot()
    assert figures(shown)["evaluated"] == figures(shown)["alarms"] == "-"
    for version, rate in ((10, 0.6), (20, 0.5)):
        event = {"event": "eval", "phase": "during", "policy_version": version}
        shown.progress.fold({**event, "success_rate": rate})
    alarm = {"event": "alarm", "alarm": "idle", "subject": "runner", "state": "raised"}
    shown.progress.fold(alarm)
    assert figures(shown)["evaluated"] == "v20 50 % (best v10 60 %)"
    assert "evaluated v20 50 % (best v10 60 %) | alarms idle runner" in plain_line(shown)
    output = io.StringIO()
    with View(Console(file=output, force_terminal=True, width=110), now=lambda: 0.0) as view:
        view.show(shown)
    assert "idle runner" in output.getvalue()
    shown.progress.fold(alarm | {"state": "cleared"})
    assert figures(shown)["alarms"] == "-"
