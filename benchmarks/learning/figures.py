"""The curves as PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.learning.outcome import Curve, Outcome
from benchmarks.stats import mean_curve

SEED_COLOUR, MEAN_COLOUR, CONTROL_COLOUR = "tab:blue", "tab:blue", "tab:gray"


def draw_success(trained: Sequence[Outcome], control: Outcome, path: Path) -> None:
    """Success of the training episodes: each seed thin, their mean thick, the control dashed."""
    figure = Figure(figsize=(7.0, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    end = trained[0].curve_min
    _draw(axes, [o.curve for o in trained], control.curve, end, labelled=True)
    floor = 100 * trained[0].evals["floor"]["success_rate"]
    axes.axhline(floor, linestyle=":", color="black", label="random clicks (held out)")
    axes.set(xlabel="minutes of training", ylabel="success of training episodes (%)")
    axes.legend(fontsize="small", loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))


def draw_tasks(trained: Sequence[Outcome], control: Outcome, path: Path) -> None:
    tasks = sorted({task for outcome in trained for task in outcome.curve_by_task})
    columns = min(4, len(tasks))
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(3.4 * columns, 2.4 * rows), dpi=110, layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    end = trained[0].curve_min
    for axes, task in zip(grid.flat, tasks, strict=False):
        curves = [o.curve_by_task[task] for o in trained if task in o.curve_by_task]
        _draw(axes, curves, control.curve_by_task.get(task, []), end)
        axes.set_title(task, fontsize="small")
    for axes in list(grid.flat)[len(tasks) :]:
        axes.set_visible(False)
    figure.supxlabel("minutes of training")
    figure.supylabel("success of training episodes (%)")
    FigureCanvasAgg(figure).print_png(str(path))


def _draw(
    axes: Axes, curves: Sequence[Curve], control: Curve, end: float, *, labelled: bool = False
) -> None:
    for index, curve in enumerate(curves):
        label = "each seed" if labelled and index == 0 else None
        _line(axes, curve, end, color=SEED_COLOUR, alpha=0.35, linewidth=1.0, label=label)
    mean = mean_curve(curves)
    label = f"mean of {len(curves)} seeds" if labelled else None
    _line(axes, mean, end, color=MEAN_COLOUR, linewidth=2.2, label=label)
    label = "control, learning rate 0" if labelled else None
    _line(axes, control, end, color=CONTROL_COLOUR, linestyle="--", label=label)
    axes.set(ylim=(0, 100))
    axes.grid(alpha=0.3)


def _line(axes: Axes, curve: Sequence[float | None], end: float, **style: Any) -> None:
    if not curve:
        return
    width = end / len(curve)
    middles = (np.arange(len(curve)) + 0.5) * width
    axes.plot(middles, [math.nan if value is None else 100 * value for value in curve], **style)
