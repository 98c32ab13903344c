"""How the other benchmarks measure: process trees, segments, the two sides' workload."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.browser.contestants import Measured
from benchmarks.browser.report import OFFICIAL, OURS, SCREENSHOTS, BrowserResult, render
from benchmarks.browser.workload import Order, clicks, seeds_of
from benchmarks.decoupled.__main__ import render as render_decoupled
from benchmarks.decoupled.figures import measure_segment
from benchmarks.decoupled.segments import COUPLED, COUPLING, DECOUPLED
from benchmarks.processes import Process, all_processes, cpu_s, pss_bytes, tree
from dart_gui.data.staleness import Pacing, admits

# --- processes -----------------------------------------------------------------------------------


def test_a_tree_is_what_descends_from_its_root() -> None:
    parents = {1: 0, 2: 1, 3: 2, 4: 2, 5: 1, 6: 9}
    processes = {
        pid: Process(pid=pid, parent=parent, started=0, cpu_s=pid / 10, command="")
        for pid, parent in parents.items()
    }
    found = tree(2, processes)
    assert found[0].pid == 2
    assert sorted(each.pid for each in found) == [2, 3, 4]
    assert cpu_s(found) == pytest.approx(0.9)


def test_this_process_is_measured() -> None:
    mine = all_processes()[os.getpid()]
    assert mine.parent == os.getppid()
    assert "python" in mine.command
    assert mine.cpu_s > 0
    assert 2**20 < pss_bytes([mine]) < 2**36


def test_children_belong_to_the_tree() -> None:
    code = "import sys; sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        assert child.pid in {each.pid for each in tree(os.getpid())}
    finally:
        child.communicate()
    assert child.pid not in {each.pid for each in tree(os.getpid())}


# --- browser -------------------------------------------------------------------------------------


def test_both_sides_click_the_same_points() -> None:
    points = list(clicks("click-test-2", 7))
    assert points == list(clicks("click-test-2", 7))
    assert points != list(clicks("click-test-2", 8))
    assert all(0 <= x < 160 and 50 <= y < 210 for x, y in points)
    first, second = seeds_of(0), seeds_of(1)
    assert {next(first) for _ in range(99)}.isdisjoint({next(second) for _ in range(99)})


def test_an_order_survives_the_pipe() -> None:
    order = Order(run_s=2.0, num_envs=3, with_dom=False)
    assert Order(**json.loads(order.line())) == order


def measured(num_envs: int, steps_per_s: float, pss: float) -> Measured:
    return Measured(
        num_envs=num_envs,
        steps_per_s=steps_per_s,
        cpu_ms_per_step=1000 / steps_per_s,
        pss_mib_per_env=pss,
        browser_pss_mib_per_env=pss / 2,
        steps_per_episode=5.0,
    )


def test_browser_report_compares_within_rounds_and_judges_by_the_median() -> None:
    rounds = {
        OURS: [measured(16, 90, 40), measured(16, 40, 40), measured(16, 100, 40)],
        OFFICIAL: [measured(4, 30, 200), measured(4, 10, 220), measured(4, 40, 100)],
        SCREENSHOTS: [measured(4, 45, 160), measured(4, 20, 160), measured(4, 50, 160)],
    }
    result = BrowserResult(
        settings={"tasks": ["click-test-2"], "num_rounds": 3, "round_s": 8.0, "browser": "/b"},
        searches={name: found[:1] for name, found in rounds.items()},
        best={OURS: 16, OFFICIAL: 4, SCREENSHOTS: 4},
        rounds=rounds,
    )
    machine: dict[str, Any] = dict.fromkeys(
        ("cores", "architecture", "memory_gib", "system", "python", "browser"), "x"
    )
    text = render({"command": "c", "machine": machine}, result)
    assert (
        "against the official: 3.0 (2.5-4.0) times the steps per second (goal 3: **met**)" in text
    )
    assert "1/5.0 (2.5-5.5) of the memory per environment (goal 1/5: **met**)" in text
    assert "without DOM: 2.0 (2.0-2.0) times the steps per second (goal 3: **missed**)" in text


# --- decoupled -----------------------------------------------------------------------------------


def event(kind: str, at: float, **values: Any) -> dict[str, Any]:
    return {"event": kind, "at": at, **values}


def trained(at: float, step_s: float) -> dict[str, Any]:
    return event("train_step", at, step_s=step_s, num_samples=60, staleness_mean=1.5)


EVENTS = [
    event("trainer_start", 100.0),
    trained(104.0, 9.0),  # in the warm-up
    trained(110.0, 9.0),  # the window begins
    event("episode", 109.0),
    event("episode", 111.0),
    event("runner", 112.0, env_utilisation=0.3, num_envs=40, num_slots=16),
    trained(120.0, 2.0),
    event("episode", 125.0),
    event("runner", 126.0, env_utilisation=0.1, num_envs=40, num_slots=16),
    trained(130.0, 3.0),  # and ends
    event("episode", 131.0),
]


def test_a_segment_is_measured_from_train_step_to_train_step() -> None:
    busy = {"w0": [(100.0, 0.0), (110.0, 4.0), (130.0, 14.0)], "w1": [(90.0, 1.0), (140.0, 1.0)]}
    found = measure_segment(EVENTS, busy, warm_up_s=5.0)
    assert (found.window_s, found.num_train_steps) == (20.0, 2)
    assert found.episodes_per_min == pytest.approx(6.0)
    assert found.trained_samples_per_min == pytest.approx(360.0)
    assert found.env_utilisation == pytest.approx((0.75 + 0.25) / 2)
    assert found.worker_utilisation == pytest.approx((0.5 + 0.0) / 2)
    assert found.trainer_utilisation == pytest.approx(0.25)
    assert found.staleness_mean == 1.5


def test_a_segment_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="1 train steps ended after the warm-up"):
        measure_segment(EVENTS, {}, warm_up_s=25.0)


def test_coupled_plans_one_batch_and_waits_for_its_weights() -> None:
    assert COUPLING[COUPLED] == ("data.max_staleness=0",)
    pacing = Pacing(max_staleness=0, groups_per_step=4)
    assert admits([7, 7, 7], served=7, version=7, pacing=pacing)
    assert not admits([7, 7, 7, 7], served=7, version=7, pacing=pacing)  # one batch, no more
    assert not admits([], served=7, version=8, pacing=pacing)  # claimed, not yet published
    assert admits([], served=8, version=8, pacing=pacing)


def test_a_faster_machine_gives_the_same_shares() -> None:
    def quick(at: float) -> float:
        return 100.0 + (at - 100.0) / 2

    faster = [
        {**each, "at": quick(each["at"]), "step_s": each.get("step_s", 0.0) / 2} for each in EVENTS
    ]
    slow = measure_segment(EVENTS, {}, warm_up_s=5.0)
    fast = measure_segment(faster, {}, warm_up_s=2.5)
    assert fast.episodes_per_min == pytest.approx(2 * slow.episodes_per_min)
    same = replace(
        slow,
        window_s=10.0,
        episodes_per_min=fast.episodes_per_min,
        trained_samples_per_min=fast.trained_samples_per_min,
    )
    assert fast == same


def test_decoupled_report_compares_within_rounds() -> None:
    base = measure_segment(EVENTS, {"w0": [(110.0, 0.0), (130.0, 10.0)]}, warm_up_s=5.0)
    rounds = {
        DECOUPLED: [replace(base, episodes_per_min=rate) for rate in (300.0, 150.0)],
        COUPLED: [replace(base, episodes_per_min=rate) for rate in (200.0, 75.0)],
    }
    machine: dict[str, Any] = dict.fromkeys(
        ("cores", "architecture", "memory_gib", "system", "python", "browser"), "x"
    )
    values = {"command": "c", "machine": machine, "seconds": 40.0, "warm_up_s": 8.0}
    text = render_decoupled({**values, "overrides": ["a.b=1"]}, rounds)
    assert "| episodes per minute | 225 (150-300) | 138 (75-200) | 1.75 (1.50-2.00) |" in text
    assert "| rollout worker busy (%) | 50 (50-50) | 50 (50-50) | 1.00 (1.00-1.00) |" in text
