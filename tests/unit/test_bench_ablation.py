"""The ablation's arms, its CPU meter, its resumption and its report."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks.ablation import __main__ as ablation
from benchmarks.ablation.arms import ARMS
from benchmarks.ablation.cpu import CpuMeter, _tree
from benchmarks.ablation.report import half_interval, pooled_deviation, verdict, write_report
from benchmarks.ablation.trial import Plan, result_path, training_figures
from dart_gui import config


def arm(name):
    return next(each for each in ARMS if each.name == name)


def trial(name, seed, rate):
    return {
        "arm": name,
        "seed": seed,
        "train_s": 270.0,
        "cpu_s": {"trainer": 100.0 + seed, "browser": 50.0},
        "evaluation": {"success_rate": rate, "num_episodes": 400},
        "num_train_steps": 40 + seed,
        "num_episodes": 900,
        "curve": [[1.0, 0.2], [60.0, 0.4]],
    }


def test_every_arm_is_a_valid_configuration():
    for each in ARMS:
        overrides = [f"{k}={v.format(pool='p')}" for k, v in each.overrides.items()]
        config.load(None, overrides)


def test_the_arms_differ_by_one_level_each():
    every = dict(arm("all").overrides)
    assert "curation.entropy_share" in every
    without = arm("all-but-step").overrides
    assert {k: v for k, v in every.items() if k != "curation.entropy_share"} == without
    assert arm("all-but-token").overrides["train.tis_cap"] == "0"
    assert arm("all-coupled").overrides == every | {"data.max_staleness": "0"}
    assert arm("none").overrides == {
        "curation.skip_zero_variance": "false",
        "train.tis_cap": "0",
    }


def test_cpu_is_counted_for_a_module_and_what_it_starts():
    code = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', 'input()']))"
    arguments = [sys.executable, "-c", code, "dart_gui", "runner"]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE)
    try:
        while len(tree := _tree(process.pid, "supervisor")) < 2:
            pass
        assert set(tree.values()) == {"runner"}
    finally:
        process.communicate(b"\n")
    own = CpuMeter(os.getpid())
    assert set(own.stop()) <= {"supervisor"}


def test_a_process_that_has_ended_stays_what_it_was():
    meter = CpuMeter(os.getpid())
    meter.stop()
    for module, seconds in (("supervisor", 0.0), ("trainer", 7.0), ("supervisor", 9.0)):
        meter._count(1, module, seconds)  # before its own program, as itself, as a zombie
    assert meter.stop() == {"trainer": 9.0}


def test_a_trial_that_is_there_is_not_run_again(tmp_path, monkeypatch):
    plan = Plan(
        train_s=270.0,
        eval_episodes=400,
        work=tmp_path / "work",
        results=tmp_path / "results",
        pool_per_task=1,
        overrides=(),
    )
    plan.results.mkdir()
    result_path(plan, arm("none"), 0).write_text(json.dumps(trial("none", 0, 0.5)))
    run = []
    monkeypatch.setattr(ablation, "make_pool", lambda plan: None)
    monkeypatch.setattr(ablation, "measure_before", lambda plan: {"success_rate": 0.3})

    def fake_trial(plan, each, seed):
        run.append((each.name, seed))
        if len(run) == 3:
            raise KeyboardInterrupt
        return trial(each.name, seed, 0.4)

    monkeypatch.setattr(ablation, "run_trial", fake_trial)
    with pytest.raises(KeyboardInterrupt):
        ablation.run_missing(plan, num_seeds=2, only=["none", "all"])
    run.clear()
    ablation.run_missing(plan, num_seeds=2, only=["none", "all"])
    assert run == [("all", 1)]  # none-0 was there, all-0 and none-1 are by now


def test_trials_of_another_length_are_not_mixed_with_those_that_are_there(tmp_path):
    plan = Plan(
        train_s=270.0,
        eval_episodes=400,
        work=tmp_path,
        results=tmp_path,
        pool_per_task=1,
        overrides=(),
    )
    path = result_path(plan, arm("none"), 0)
    path.write_text(json.dumps(trial("none", 0, 0.5)))
    ablation.check_alike(plan, [path])
    for change in ({"train_s": 210.0}, {"eval_episodes": 320}):
        with pytest.raises(SystemExit, match="270 s and 400 episodes"):
            ablation.check_alike(replace(plan, **change), [path])


def test_figures_of_a_run():
    step = {
        "event": "train_step",
        "trained_tasks": {"a": 4},
        "num_borrowed": 1,
        "selected_fraction": 0.8,
        "mask_fraction": 0.0,
        "tis_mean": 1.0,
        "staleness_mean": 0.5,
        "kl_rollout": 0.01,
        "entropy": 0.3,
    }
    episode = {"event": "episode", "task_id": "a", "num_steps": 2, "group_size": 8, "max_steps": 4}
    episodes = [{**episode, "at": 10.0 + i, "success": i % 2 == 0} for i in range(48)]
    found = training_figures([step, step, *episodes])
    assert (found["num_trained"], found["num_borrowed"], found["num_model_calls"]) == (8, 2, 96)
    assert found["curve"][0] == [1.0, 0.5]
    assert len(found["curve"]) == 24


def test_an_interval_by_hand():
    # Squares 2 + 8 = 10 over 3 degrees of freedom; t(3) = 3.18: 3.18 * sqrt(10/3) * sqrt(1/3 + 1/2)
    deviation, freedom = pooled_deviation([[50.0, 52.0, 51.0], [40.0, 44.0], [7.0], []])
    assert (deviation, freedom) == (pytest.approx(1.8257, abs=1e-4), 3)
    assert half_interval(deviation, freedom, 3, 2) == pytest.approx(5.300, abs=1e-3)
    assert half_interval(1.0, 18, 3, 3) == pytest.approx(
        2.14 * (2 / 3) ** 0.5
    )  # 14: wider, not less
    assert pooled_deviation([[2.0]]) == (0.0, 0)
    assert half_interval(0.0, 0, 1, 1) is None
    assert verdict(4.0, 4.9) == "no effect shown"
    assert verdict(-5.0, 4.9) == "hurts here"


def test_the_report_says_what_the_results_say(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    for seed, (all_rate, step_rate) in enumerate([(0.50, 0.40), (0.52, 0.42), (0.51, 0.41)]):
        for name, rate in (("all", all_rate), ("all-but-step", step_rate)):
            path = results / f"{name}-seed{seed}.json"
            path.write_text(json.dumps(trial(name, seed, rate)))
    (results / "before.json").write_text(json.dumps({"success_rate": 0.31}))
    text = write_report(results, tmp_path / "out").read_text()
    assert "Before training the success is 31.0 %." in text
    assert "| all-but-step | 40.0, 42.0, 41.0 | 41.0 | +10.0 ± 2.3 | helps here |" in text
    assert "| all | 101 | " not in text.split("## CPU seconds")[0]
    assert "| all | 50 | 101 | 151 |" in text  # browser, trainer, together
    assert (tmp_path / "out" / "ablation-success.png").is_file()


def test_a_report_without_any_trial(tmp_path):
    assert "Ablation" in write_report(tmp_path, tmp_path / "out").read_text()
