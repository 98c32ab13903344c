"""The learning benchmark: what is kept of runs, what is repeated, and what the report says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.learning import runs as runs_module
from benchmarks.learning.cpu import CpuMeter, CpuTime, module_of
from benchmarks.learning.outcome import Outcome, evaluations, load
from benchmarks.learning.report import Learning, goals, render
from benchmarks.learning.runs import fingerprint, finished, make, specs
from benchmarks.learning.seeds import check_seeds, ranges_are_disjoint
from benchmarks.learning.variety import Variety, variety_of
from benchmarks.processes import Process
from dart_gui.config import Config
from dart_gui.env.suites import EVAL_SEEDS, TRAIN_SEEDS, eval_seed
from dart_gui.runner.evaluate import SuccessRate

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "miniwob-tiny.toml"
TASK = "miniwob/click-test"


def evaluation(successes: int, episodes: int = 400) -> dict[str, Any]:
    rate = SuccessRate.of(successes, episodes)
    values = {
        "success_rate": rate.rate,
        "low": rate.low,
        "high": rate.high,
        "num_episodes": episodes,
    }
    return {**values, "per_task": {TASK: dict(values)}}


def outcome(
    name: str = "seed-1", *, sampled: int = 280, greedy: int = 100, **changes: Any
) -> Outcome:
    base = Outcome(
        name=name,
        seed=1,
        lr=5e-4,
        fingerprint="f",
        num_train_steps=90,
        num_episodes=5000,
        train_min=20.0,
        staleness_max=3.0,
        max_staleness=3,
        num_starts=1,
        num_restarts=0,
        evals={
            "floor": evaluation(80),
            "before sampled": evaluation(120),
            "after sampled": evaluation(sampled),
            "before greedy": evaluation(40),
            "after greedy": evaluation(greedy),
        },
        curve=[0.25, None, 0.5],
        curve_min=20.0,
        curve_by_task={TASK: [0.25, None, 0.5]},
        seeds={
            "num_trained": 600,
            "lowest_trained": 5,
            "highest_trained": 2**30 - 1,
            "num_evaluated": 50,
            "lowest_evaluated": 2**30,
            "highest_evaluated": 2**30 + 49,
            "num_shared": 0,
        },
        cpu_s={"trainer": 600.0},
        cpu_wall_s=1200.0,
    )
    return replace(base, **changes)


def learning(trained: list[Outcome], control: Outcome | None = None) -> Learning:
    few = Variety(
        task_id=TASK,
        num_train=100,
        num_distinct=3,
        num_instructions=3,
        num_held_out=50,
        num_known=50,
    )
    return Learning(
        trained=trained,
        control=control or outcome("control", sampled=124, greedy=40, lr=0.0),
        varieties=[few, replace(few, task_id="miniwob/enter-text", num_distinct=99, num_known=1)],
        machine={
            "cores": 2,
            "architecture": "x86_64",
            "memory_gib": 8,
            "system": "Linux",
            "python": "3.11",
            "browser": "Chromium 1",
        },
        command=".venv/bin/python -m benchmarks.learning",
    )


def test_gain_is_in_points_of_the_same_decoding() -> None:
    assert outcome(sampled=280).gain("sampled") == pytest.approx(40.0)
    assert outcome(greedy=100).gain("greedy") == pytest.approx(15.0)


def test_a_goal_is_met_by_the_mean_of_the_seeds() -> None:
    text = goals(learning([outcome(sampled=180), outcome(sampled=240), outcome(sampled=300)]))
    assert "sampled: **+30.0 points**, mean of 3 (standard deviation 15.0, +15.0 to +45.0)" in text
    assert "goal +30: **met**. Control: +1.0." in text
    text = goals(learning([outcome(sampled=239, greedy=79)] * 3))
    assert text.count("**missed**") == 2


def test_report_shows_intervals_spreads_and_tasks() -> None:
    text = render(learning([outcome(sampled=280), outcome("seed-2", sampled=260, seed=2)]))
    assert "| seed 1 | 30.0 (25.7-34.7) | 70.0 (65.3-74.3) | +40.0 |" in text
    assert "| **mean of 2** | 30.0 | 67.5 (65.0-70.0) | **+37.5** (sd 3.5) |" in text
    assert "| control | 30.0 (25.7-34.7) | 31.0 (26.7-35.7) | +1.0 |" in text
    assert f"| `{TASK}` | 20.0 | 30.0 | 67.5 (65.0-70.0) | 10.0 | 25.0 | 31.0 |" in text
    assert "| trainer | 600 (50%) |" in text


def test_report_names_the_tasks_that_hardly_vary() -> None:
    text = render(learning([outcome()]))
    assert f"(fewer than 33% distinct): `{TASK}` (3)." in text
    assert "| `miniwob/enter-text` | 99 | 3 | 1 of 50 |" in text


def test_report_says_whether_seeds_are_disjoint() -> None:
    assert "2147483648): disjoint." in render(learning([outcome()]))
    shared = outcome(seeds={**outcome().seeds, "num_shared": 1})
    assert "**not disjoint**" in render(learning([shared]))


def test_seeds_of_the_two_ranges_are_told_apart() -> None:
    assert ranges_are_disjoint()
    config = Config()
    trained = [(TASK, TRAIN_SEEDS.start), (TASK, TRAIN_SEEDS.stop - 1), (TASK, TRAIN_SEEDS.start)]
    check = check_seeds(trained, config, num_tasks=8)
    assert (check.num_trained, check.num_evaluated, check.num_shared) == (2, 50, 0)
    assert check.highest_evaluated == eval_seed(49)
    check = check_seeds([*trained, (TASK, EVAL_SEEDS.start + 7)], config, num_tasks=8)
    assert check.num_shared == 1


def test_variety_counts_what_looks_different() -> None:
    train = [("a", "1"), ("a", "1"), ("a", "2"), ("b", "1")]
    found = variety_of(TASK, train, [("a", "2"), ("b", "2")])
    assert (found.num_distinct, found.num_instructions) == (3, 2)
    assert (found.num_known, found.num_held_out) == (1, 2)
    assert not found.hardly_varies
    assert replace(found, num_train=10).hardly_varies


def test_the_newest_evaluation_of_a_kind_counts() -> None:
    def event(phase: str, temperature: float, rate: float) -> dict[str, Any]:
        values = {"phase": phase, "temperature": temperature, "success_rate": rate}
        return {"event": "eval", "at": 5.0, "process": "evaluator", **values}

    events = [
        event("floor", 0.0, 0.2),
        event("before", 1.0, 0.3),
        event("after", 0.0, 0.4),
        event("after", 0.0, 0.5),
        event("eval", 0.0, 0.9),
    ]
    found = evaluations(events)
    assert sorted(found) == ["after greedy", "before sampled", "floor"]
    assert found["after greedy"]["success_rate"] == 0.5
    assert "at" not in found["floor"]


# --- runs ----------------------------------------------------------------------------------------


def test_runs_are_the_seeds_and_a_control_of_the_first(tmp_path: Path) -> None:
    made = specs(CONFIG, [4, 5], ["run.max_time_s=20"], tmp_path)
    assert [spec.name for spec in made] == ["seed-4", "seed-5", "control"]
    configs = [spec.config() for spec in made]
    assert [(c.run.seed, c.train.lr) for c in configs] == [(4, 3e-4), (5, 3e-4), (4, 0.0)]
    assert {c.run.max_time_s for c in configs} == {20.0}


def test_a_run_that_was_begun_is_resumed(tmp_path: Path) -> None:
    spec = specs(CONFIG, [1], [], tmp_path)[0]
    folder = str(tmp_path / "seed-1")
    assert spec.arguments() == ["train", str(CONFIG), "--run-dir", folder, "--run.seed=1"]
    spec.folder.path.mkdir()
    spec.folder.config.touch()
    assert spec.arguments() == ["train", "--resume", folder]


def test_a_finished_run_is_found_by_its_configuration(tmp_path: Path) -> None:
    spec = specs(CONFIG, [1], [], tmp_path / "runs")[0]
    kept = tmp_path / "kept"
    assert finished(spec, kept) is None
    made = outcome(fingerprint=fingerprint(spec.config()))
    made.save(kept)
    assert load(kept / "seed-1.json") == made
    assert finished(spec, kept) == made
    other = specs(CONFIG, [1], ["train.lr=1e-3"], tmp_path / "runs")[0]
    with pytest.raises(SystemExit, match="another configuration or model"):
        finished(other, kept)


def test_the_place_of_a_run_is_not_part_of_its_configuration(tmp_path: Path) -> None:
    here, there = (
        specs(CONFIG, [1], [f"run.dir={place}"], tmp_path)[0].config() for place in ("a", "b")
    )
    assert fingerprint(here) == fingerprint(there)


def test_a_run_that_fails_leaves_no_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_module, "_train", lambda spec: 130)
    spec = specs(CONFIG, [1], [], tmp_path / "runs")[0]
    with pytest.raises(SystemExit, match=r"ended with exit code 130\. The same command"):
        make(spec, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


# --- CPU -----------------------------------------------------------------------------------------


def process(pid: int, command: str, cpu_s: float) -> Process:
    return Process(pid=pid, parent=1, started=0, cpu_s=cpu_s, command=command)


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("python -m dart_gui train configs/a.toml", "supervisor"),
        ("python -m dart_gui trainer --run-dir r", "trainer"),
        ("python -m dart_gui rollout --run-dir r", "rollout service"),
        ("python -m dart_gui.rollout.worker {}", "rollout worker"),
        ("/usr/lib/chromium/headless_shell --type=renderer", "browser"),
        ("/x/playwright/driver/node run-driver", "Playwright driver"),
    ],
)
def test_processes_are_named_by_module(command: str, module: str) -> None:
    assert module_of(process(1, command, 0.0)) == module


def test_cpu_counts_while_there_is_a_trainer() -> None:
    meter = CpuMeter()
    trainer, worker = "python -m dart_gui trainer", "python -m dart_gui.rollout.worker {}"
    meter.look([process(1, worker, 10.0)], 100.0)  # before training: an evaluation
    meter.look([process(1, worker, 12.0), process(2, trainer, 0.5)], 101.0)
    meter.look([process(1, worker, 13.0), process(2, trainer, 1.5)], 102.0)
    meter.look([process(1, worker, 99.0)], 103.0)
    assert meter.cpu_s == {"rollout worker": 3.0, "trainer": 1.5}
    assert meter.wall_s == 2.0


def test_cpu_of_a_resumed_run_adds_up() -> None:
    before = CpuTime(cpu_s={"trainer": 2.0}, wall_s=3.0)
    total = before.plus({"trainer": 1.0, "runner": 4.0}, 5.0)
    assert total == CpuTime(cpu_s={"runner": 4.0, "trainer": 3.0}, wall_s=8.0)
