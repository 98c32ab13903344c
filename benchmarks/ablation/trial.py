"""One arm at one seed: train for a fixed wall clock, evaluate on held-out seeds, keep the figures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ablation.arms import Arm
from benchmarks.ablation.cpu import CpuMeter
from dart_gui import metrics

CONFIG = "configs/miniwob-tiny.toml"
CURVE_POINTS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    train_s: float
    eval_episodes: int
    work: Path  # runs and the pool
    results: Path  # one JSON file per trial
    pool_per_task: int
    overrides: tuple[str, ...]  # "section.key=value", for every arm

    @property
    def pool(self) -> Path:
        return self.work / "pool"


def result_path(plan: Plan, arm: Arm, seed: int) -> Path:
    return plan.results / f"{arm.name}-seed{seed}.json"


def make_pool(plan: Plan) -> None:
    """Scripted successes, the same for every arm; made once."""
    if not (plan.pool / "index.jsonl").is_file():
        script = str(plan.pool_per_task)
        _dart_gui(["pool", "add", str(plan.pool), CONFIG, "--script", script, *_flags(plan)])


def measure_before(plan: Plan) -> dict[str, Any]:
    """The initial policy, which is the same in every arm."""
    runs = plan.work / "before"
    return _evaluate([CONFIG], runs, plan)


def run_trial(plan: Plan, arm: Arm, seed: int) -> dict[str, Any]:
    """Train and evaluate; the figures. A run that was broken off is begun again from its start, since
    its wall clock counts."""
    runs = _fresh(plan.work / f"{arm.name}-seed{seed}")
    overrides = {key: value.format(pool=plan.pool) for key, value in arm.overrides.items()}
    arguments = ["train", CONFIG, "--name", "trial", *_flags(plan), f"--run.dir={runs}"]
    arguments += [f"--run.seed={seed}", f"--run.max_time_s={plan.train_s}"]
    arguments += ["--eval.before_after=false", "--launch.tensorboard=false"]
    arguments += [f"--{key}={value}" for key, value in overrides.items()]
    cpu = _dart_gui(arguments)
    events = list(metrics.read(runs / "trial" / "metrics.jsonl"))
    return {
        "arm": arm.name,
        "seed": seed,
        "overrides": arm.overrides,
        "train_s": plan.train_s,
        "cpu_s": cpu,
        "evaluation": _evaluate(["--run", str(runs / "trial")], runs, plan),
        **training_figures(events),
    }


def training_figures(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the metrics of a run say about its training and its curation."""
    train = [event for event in events if event["event"] == "train_step"]
    episodes = [event for event in events if event["event"] == "episode"]
    trained: Counter[str] = Counter()
    for event in train:
        trained.update(event["trained_tasks"])
    return {
        "num_train_steps": len(train),
        "num_episodes": len(episodes),
        "num_model_calls": sum(event["num_steps"] for event in episodes),
        "num_trained": trained.total(),
        "trained_tasks": dict(trained),
        "dispatched_tasks": dict(Counter(event["task_id"] for event in episodes)),
        "num_borrowed": sum(event["num_borrowed"] for event in train),
        "selected_fraction": _mean([event["selected_fraction"] for event in train]),
        "mask_fraction": _mean([event["mask_fraction"] for event in train]),
        "tis_mean": _mean([event["tis_mean"] for event in train]),
        "staleness_mean": _mean([event["staleness_mean"] for event in train]),
        "kl_rollout": _mean([event["kl_rollout"] for event in train]),
        "entropy_last": _mean([event["entropy"] for event in train[-20:]]),
        "group_size_mean": _mean([event["group_size"] for event in episodes]),
        "max_steps_mean": _mean([event["max_steps"] for event in episodes]),
        "curve": _curve(episodes),
    }


def _curve(episodes: Sequence[dict[str, Any]]) -> list[list[float]]:
    """[seconds since the first episode, success rate of the training episodes] in equal parts."""
    if not episodes:
        return []
    first = episodes[0]["at"]
    size = max(1, len(episodes) // CURVE_POINTS)
    parts = [episodes[i : i + size] for i in range(0, len(episodes), size)]
    return [
        [round(part[-1]["at"] - first, 1), round(_mean([e["success"] for e in part]) or 0.0, 4)]
        for part in parts
    ]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _evaluate(model: list[str], runs: Path, plan: Plan) -> dict[str, Any]:
    """Success on held-out seeds, sampled as in training."""
    episodes = str(plan.eval_episodes)
    flags = [*_flags(plan), f"--run.dir={runs}", "--launch.tensorboard=false"]
    _dart_gui(["eval", *model, "--episodes", episodes, "--temperature", "1.0", *flags])
    newest = max((runs / "eval").glob("*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    event = [e for e in metrics.read(newest) if e["event"] == "eval"][-1]
    wanted = ("num_episodes", "success_rate", "low", "high", "per_task")
    return {key: event[key] for key in wanted}


def _flags(plan: Plan) -> list[str]:
    return [f"--{override}" for override in plan.overrides]


def _fresh(folder: Path) -> Path:
    number = sum(1 for _ in folder.parent.glob(f"{folder.name}*"))
    return folder if number == 0 else folder.with_name(f"{folder.name}.{number}")


def _dart_gui(arguments: Sequence[str]) -> dict[str, float]:
    """Run the command to its end; the CPU seconds of its modules.

    Raises:
        RuntimeError: it failed.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "dart_gui", *arguments],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", "src")},
    )
    meter = CpuMeter(process.pid)
    try:
        status = process.wait()
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    finally:
        seconds = meter.stop()
    if status != 0:
        raise RuntimeError(f"dart-gui {' '.join(arguments)} ended with status {status}")
    return seconds


def save(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".partial")
    draft.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    draft.replace(path)
