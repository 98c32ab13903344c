"""``docs/results/ablation.md`` and its plots, from the result files alone."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.ablation.arms import ARMS

Result = dict[str, Any]
# Two-sided, by degrees of freedom.
T_95 = {
    1: 12.71,
    2: 4.30,
    3: 3.18,
    4: 2.78,
    5: 2.57,
    6: 2.45,
    8: 2.31,
    10: 2.23,
    14: 2.14,
    20: 2.09,
}
COMMAND = "make bench BENCH=ablation"


def write_report(results: Path, out: Path) -> Path:
    """Read every result in ``results``; the report's path."""
    found = load(results)
    out.mkdir(parents=True, exist_ok=True)
    plots = draw(found, out) if any(found.values()) else []
    parts = ["# Ablation of the data curation", introduction(found, results)]
    if any(found.values()):
        parts += [
            "## Success after training",
            success_table(found),
            *[f"![{p}]({p})" for p in plots],
        ]
        parts += ["## What each arm did", work_table(found), "## CPU seconds", cpu_table(found)]
    synthetic = results / "synthetic.json"
    if synthetic.is_file():
        parts += synthetic_tables(json.loads(synthetic.read_text()))
    path = out / "ablation.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def load(results: Path) -> dict[str, list[Result]]:
    """The trials of each arm, by seed."""
    return {
        arm.name: [
            json.loads(path.read_text()) for path in sorted(results.glob(f"{arm.name}-seed*.json"))
        ]
        for arm in ARMS
    }


def rate(result: Result) -> float:
    return 100 * float(result["evaluation"]["success_rate"])


def pooled_deviation(arms: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Standard deviation between the seeds of an arm, from all arms together, and its degrees of
    freedom: three seeds say little about their own spread, and chance is the same in every arm.

    >>> pooled_deviation([[50.0, 52.0, 51.0], [40.0, 44.0]])
    (1.8257418583505538, 3)
    """
    squares, freedom = 0.0, 0
    for values in arms:
        if values:
            mean = sum(values) / len(values)
            squares += sum((value - mean) ** 2 for value in values)
            freedom += len(values) - 1
    return (math.sqrt(squares / freedom) if freedom else 0.0), freedom


def half_interval(deviation: float, freedom: int, num_left: int, num_right: int) -> float | None:
    """Half of the 95 % t interval of the difference of two means; None where nothing is repeated."""
    if freedom == 0:
        return None
    quantile = T_95[max(known for known in T_95 if known <= freedom)]
    return quantile * deviation * math.sqrt(1 / num_left + 1 / num_right)


def introduction(found: Mapping[str, Sequence[Result]], results: Path) -> str:
    trials = [trial for arm in found.values() for trial in arm]
    lines = [
        f"Written by `{COMMAND}`; the figures of every trial are in `benchmarks/ablation/results`.",
    ]
    if trials:
        episodes = trials[0]["evaluation"]["num_episodes"]
        noise = 100 * math.sqrt(0.25 / episodes)
        seeds = sorted({trial["seed"] for trial in trials})
        lines += [
            f"Every trial trains `configs/miniwob-tiny.toml` for {trials[0]['train_s']:g} s of wall "
            f"clock, seeds {', '.join(map(str, seeds))}, on {platform.processor() or 'CPU'} "
            f"({platform.machine()}), and is then evaluated on {episodes} held-out episodes, sampled "
            f"at temperature 1: the standard error of one evaluation is up to {noise:.1f} points, so "
            "smaller differences between two trials mean nothing.",
        ]
    before = results / "before.json"
    if before.is_file():
        start = json.loads(before.read_text())
        lines.append(f"Before training the success is {100 * start['success_rate']:.1f} %.")
    return "\n".join(lines)


def success_table(found: Mapping[str, Sequence[Result]]) -> str:
    """Per arm mean and seeds, and its difference to ``all``."""
    arms = {name: [rate(trial) for trial in trials] for name, trials in found.items() if trials}
    deviation, freedom = pooled_deviation(arms.values())
    lines = [
        "| arm | success, % (each seed) | mean | all minus arm, points (95 % interval) | reading |",
        "|---|---|---:|---:|---|",
    ]
    for name, rates in arms.items():
        difference, reading = "-", ""
        if name != "all" and "all" in arms:
            mean = float(np.mean(arms["all"]) - np.mean(rates))
            half = half_interval(deviation, freedom, len(arms["all"]), len(rates))
            difference = f"{mean:+.1f}" + ("" if half is None else f" ± {half:.1f}")
            reading = verdict(mean, half)
        cells = [", ".join(f"{r:.1f}" for r in rates), f"{np.mean(rates):.1f}"]
        lines.append(f"| {name} | " + " | ".join([*cells, difference, reading]) + " |")
    table = "\n".join(lines)
    return f"{table}\n\n{_spread(arms, deviation)}" if freedom else table


def _spread(arms: Mapping[str, Sequence[float]], deviation: float) -> str:
    means = [float(np.mean(rates)) for rates in arms.values()]
    return (
        f"Between seeds of one arm the standard deviation is {deviation:.1f} points (from all arms "
        f"together; the intervals are made of it); the means of the arms lie {min(means):.1f} to "
        f"{max(means):.1f}. Six comparisons are made, so about one in four such tables shows an "
        "effect by chance alone."
    )


def verdict(mean: float, half: float | None) -> str:
    """In words, and no more than the figures say.

    >>> [verdict(3.0, 5.0), verdict(6.0, 2.0), verdict(-6.0, 2.0), verdict(6.0, None)]
    ['no effect shown', 'helps here', 'hurts here', 'one seed: says nothing']
    """
    if half is None:
        return "one seed: says nothing"
    if abs(mean) <= half:
        return "no effect shown"
    return "helps here" if mean > 0 else "hurts here"


def work_table(found: Mapping[str, Sequence[Result]]) -> str:
    """Means over the seeds."""
    columns = {
        "train steps": "num_train_steps",
        "episodes": "num_episodes",
        "trained": "num_trained",
        "borrowed": "num_borrowed",
        "group size": "group_size_mean",
        "step limit": "max_steps_mean",
        "steps selected": "selected_fraction",
        "staleness": "staleness_mean",
        "KL rollout": "kl_rollout",
    }
    lines = ["| arm | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, trials in found.items():
        if trials:
            cells = [_shown([trial.get(key) for trial in trials]) for key in columns.values()]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cpu_table(found: Mapping[str, Sequence[Result]]) -> str:
    """Means over the trials in which every module was told apart; the sum over all of them."""
    trials_of = {name: trials for name, trials in found.items() if trials}
    modules = sorted(
        {m for trials in trials_of.values() for trial in trials for m in trial["cpu_s"]}
    )
    lines = ["| arm | " + " | ".join(modules) + " | all |", "|---|" + "---:|" * (len(modules) + 1)]
    num_left_out = 0
    for name, trials in trials_of.items():
        whole = [trial["cpu_s"] for trial in trials if set(modules) <= set(trial["cpu_s"])]
        num_left_out += len(trials) - len(whole)
        cells = [_shown([cpu[m] for cpu in whole]) for m in modules]
        cells.append(_shown([sum(trial["cpu_s"].values()) for trial in trials]))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if num_left_out:
        lines += [
            "",
            f"In {num_left_out} trials a module had ended when it was last looked at, and its seconds "
            "were counted for another one: they are in the sums only.",
        ]
    return "\n".join(lines)


def _shown(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.3g}" if known else "-"


def synthetic_tables(synthetic: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    titles = {
        "rollout_number": "Task level: attempts of a group, and which task next",
        "step_limit": "Task level: step limit",
        "experience_pool": "Trajectory level: a success that is rare",
        "entropy": "Step level: share of the steps of highest entropy",
        "importance": "Token level: a gradient from stale samples",
    }
    parts = [
        "## Where the truth is known",
        "Small worlds of `benchmarks/ablation/synthetic.py`, in which each part works alone and its "
        "effect can be seen: mean ± standard error over 20 seeds.",
    ]
    for key, title in titles.items():
        rows = synthetic[key]
        figures = [name for name in rows[0] if name != "name"]
        lines = ["| | " + " | ".join(figures) + " |", "|---|" + "---:|" * len(figures)]
        for row in rows:
            cells = [f"{row[f]['mean']:.3g} ± {row[f]['error']:.1g}" for f in figures]
            lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
        parts += [f"### {title}", "\n".join(lines)]
    return parts


def draw(found: Mapping[str, Sequence[Result]], out: Path) -> list[str]:
    """Success per arm with each seed, and the training curves; the names of the files."""
    figure = Figure(figsize=(8.4, 4.0), dpi=110, layout="constrained")
    axes = figure.subplots()
    names = [name for name, trials in found.items() if trials]
    for place, name in enumerate(names):
        rates = [rate(trial) for trial in found[name]]
        axes.bar(place, np.mean(rates), color="tab:blue", alpha=0.5)
        axes.plot([place] * len(rates), rates, "k.", alpha=0.8)
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right", fontsize="small")
    axes.set(ylabel="held-out success (%)", title="each dot is one seed")
    axes.grid(alpha=0.3, axis="y")
    FigureCanvasAgg(figure).print_png(str(out / "ablation-success.png"))

    figure = Figure(figsize=(8.4, 4.0), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name in names:
        curves = [np.array(trial["curve"]) for trial in found[name] if trial["curve"]]
        if not curves:
            continue
        ruler = np.linspace(0, min(curve[-1, 0] for curve in curves), 30)
        mean = np.mean([np.interp(ruler, curve[:, 0], curve[:, 1]) for curve in curves], axis=0)
        axes.plot(ruler / 60, 100 * mean, label=name)
    axes.set(xlabel="minutes of training", ylabel="success of training episodes (%)")
    axes.set_title(
        "mean over the seeds; arms that choose tasks train on another mix", fontsize="small"
    )
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    FigureCanvasAgg(figure).print_png(str(out / "ablation-curves.png"))
    return ["ablation-success.png", "ablation-curves.png"]
