"""The curves of a run as PNG files."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dart_gui.files import write_whole
from dart_gui.launch.curation_report import draw_curation, has_curation
from dart_gui.launch.progress import Event, number

Series = NDArray[np.float64]

WINDOW = 200
TASK_WINDOW = 50
MIN_BINS = 12  # of episodes per minute; more than one in a run of a few minutes
UTILISATION_WINDOW = 30  # seconds, since the runner reports once a second


def moving_average(values: Series, window: int) -> Series:
    """Mean over the last ``window`` values at each place, over what there is at the beginning.

    >>> moving_average(np.array([0.0, 1.0, 1.0]), 2).tolist()
    [0.0, 0.5, 1.0]
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(0, last - window)
    return (sums[last] - sums[first]) / (last - first)


class RunCurves:
    """The events of a run as aligned arrays. Training time leaves out the time while it was stopped
    (the clock of the trainer does)."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.train = [event for event in events if event.get("event") == "train_step"]
        self.episodes = [event for event in events if event.get("event") == "episode"]
        self.runner = [event for event in events if event.get("event") == "runner"]
        self.evals = [event for event in events if event.get("event") == "eval"]

    def of_train(self, key: str) -> Series:
        return _values(self.train, key)

    def minutes_of(self, events: Sequence[Event]) -> Series:
        """Minutes of training at each event, interpolated between the train steps."""
        return self._at_train(events, self.of_train("elapsed_s") / 60.0)

    def train_steps_of(self, events: Sequence[Event]) -> Series:
        return self._at_train(events, self.of_train("train_step"))

    def during(self) -> tuple[list[Event], Series, Series]:
        """The evaluations while training, with the minutes of training and the train steps that their
        weights had: they were measured later."""
        during = [e for e in self.evals if e.get("phase") == "during"]
        steps = _values(during, "train_step")
        if not self.train:
            return during, steps, steps
        minutes = self.of_train("elapsed_s") / 60.0
        return during, np.interp(steps, self.of_train("train_step"), minutes), steps

    def _at_train(self, events: Sequence[Event], values: Series) -> Series:
        at = _values(events, "at")
        if not self.train:
            return (at - at[0]) / 60.0 if len(at) else at
        # Training time begins before its first step ends: start the ruler there.
        ruler = _values(self.train, "at")
        first = number(self.train[0], "elapsed_s") or 0.0
        ruler = np.concatenate([[ruler[0] - first], ruler])
        return np.interp(at, ruler, np.concatenate([[0.0], values]))


def draw_all(events: Sequence[Event], folder: Path) -> list[Path]:
    """Write every plot that the events have data for; gives the files, in order of interest."""
    curves = RunCurves(events)
    plots: list[tuple[str, bool, Callable[[RunCurves], Figure]]] = [
        ("success", bool(curves.episodes), draw_success),
        ("tasks", bool(curves.episodes), draw_tasks),
        ("training", bool(curves.train), draw_training),
        ("throughput", bool(curves.train), draw_throughput),
        (
            "curation",
            has_curation(curves.train),
            lambda c: draw_curation(c.train, c.episodes, c.minutes_of(c.episodes)),
        ),
    ]
    drawn: list[Path] = []
    for name, has_data, draw in plots:
        if has_data:
            path = folder / f"{name}.png"
            picture = io.BytesIO()
            FigureCanvasAgg(draw(curves)).print_png(picture)
            write_whole(path, picture.getvalue(), what="the plot")
            drawn.append(path)
    return drawn


def draw_success(curves: RunCurves) -> Figure:
    figure, (by_time, by_step) = _grid(1, 2, height=3.6)
    success = _successes(curves.episodes)
    average = 100 * moving_average(success, WINDOW)
    by_time.plot(curves.minutes_of(curves.episodes), average)
    by_step.plot(curves.train_steps_of(curves.episodes), average)
    for axes, label in ((by_time, "minutes of training"), (by_step, "train step")):
        axes.set(xlabel=label, ylabel="success (%)", ylim=(0, 100))
        axes.set_title(f"training episodes, mean of the last {WINDOW}")
        _mark_evals(axes, curves.evals)
    during, minutes, steps = curves.during()
    for axes, at in ((by_time, minutes), (by_step, steps)):
        _draw_during(axes, during, at)
    return figure


def _draw_during(axes: Axes, during: Sequence[Event], at: Series) -> None:
    """Points with their 95 % intervals."""
    if not during:
        return
    rate, low, high = (100 * _values(during, key) for key in ("success_rate", "low", "high"))
    axes.errorbar(
        at,
        rate,
        yerr=np.abs(np.stack([rate - low, high - rate])),
        fmt="o",
        markersize=3,
        linewidth=1,
        color="tab:red",
        label="held out, during",
    )
    axes.legend(fontsize="small", loc="upper left")


def _mark_evals(axes: Axes, evals: Sequence[Event]) -> None:
    """Dotted levels of the held-out evaluations at the sampling temperature."""
    colours = {"floor": "tab:gray", "before": "tab:orange", "after": "tab:green"}
    levels = {
        str(event.get("phase")): event
        for event in evals
        if event.get("phase") in colours
        and (event.get("phase") == "floor" or number(event, "temperature"))
    }
    for phase, event in levels.items():
        rate = number(event, "success_rate")
        if phase in colours and rate is not None:
            axes.axhline(
                100 * rate, linestyle=":", color=colours[phase], label=f"held out, {phase}"
            )
    if levels:
        axes.legend(fontsize="small", loc="upper left")


def draw_tasks(curves: RunCurves) -> Figure:
    tasks = sorted({str(event.get("task_id")) for event in curves.episodes})
    columns = min(4, len(tasks))
    figure, panels = _grid(math.ceil(len(tasks) / columns), columns, height=2.2)
    for task, axes in itertools.zip_longest(tasks, panels):
        if task is None:
            axes.set_visible(False)
            continue
        own = [event for event in curves.episodes if event.get("task_id") == task]
        average = 100 * moving_average(_successes(own), TASK_WINDOW)
        axes.plot(curves.minutes_of(own), average)
        axes.set(ylim=(0, 100))
        axes.set_title(task, fontsize="small")
    figure.supxlabel("minutes of training")
    figure.supylabel(f"success (%), mean of the last {TASK_WINDOW}")
    return figure


def draw_training(curves: RunCurves) -> Figure:
    figure, panels = _grid(2, 3, height=2.6)
    steps = curves.of_train("train_step")
    shown = {
        "loss": ["loss"],
        "entropy (nats per token)": ["entropy"],
        "KL of rollout and trainer": ["kl_rollout"],
        "importance ratio, mean": ["ratio_mean"],
        "share of tokens": ["clip_fraction", "tis_fraction"],
        "gradient norm": ["grad_norm"],
    }
    for axes, (title, keys) in zip(panels, shown.items(), strict=True):
        for key in keys:
            axes.plot(steps, curves.of_train(key), label=key)
        axes.set_title(title, fontsize="small")
        if len(keys) > 1:
            axes.legend(fontsize="small")
    figure.supxlabel("train step")
    return figure


def draw_throughput(curves: RunCurves) -> Figure:
    figure, panels = _grid(2, 2, height=2.6)
    staleness, episodes, samples, busy = panels
    steps = curves.of_train("train_step")
    step_s, wait_s = curves.of_train("step_s"), curves.of_train("wait_s")
    total_s = np.maximum(step_s + wait_s, 1e-9)
    for key in ("staleness_mean", "staleness_max"):
        staleness.plot(steps, curves.of_train(key), label=key)
    staleness.set(title="staleness (versions)", xlabel="train step")
    staleness.legend(fontsize="small")
    if curves.episodes:
        minutes = curves.minutes_of(curves.episodes)
        num_bins = max(MIN_BINS, math.ceil(float(minutes.max())))
        counts, edges = np.histogram(minutes, bins=num_bins)
        episodes.plot((edges[1:] + edges[:-1]) / 2, counts / np.maximum(np.diff(edges), 1e-9))
    episodes.set(title="episodes per minute", xlabel="minutes of training", ylim=(0, None))
    samples.plot(steps, curves.of_train("num_samples") / total_s)
    samples.set(title="trained samples per second", xlabel="train step", ylim=(0, None))
    minutes = curves.minutes_of(curves.train)
    busy.plot(minutes, 100 * step_s / total_s, label="trainer")
    if curves.runner:
        share = np.nan_to_num(_values(curves.runner, "env_utilisation"))
        average = 100 * moving_average(share, UTILISATION_WINDOW)
        busy.plot(curves.minutes_of(curves.runner), average, label="environments")
    busy.set(title="busy (%)", xlabel="minutes of training", ylim=(0, 105))
    busy.legend(fontsize="small")
    return figure


def _grid(rows: int, columns: int, *, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.2 * columns, height * rows), dpi=110, layout="constrained")
    panels: Any = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    return figure, list(panels.flat)


def _values(events: Sequence[Event], key: str) -> Series:
    """[N] values; NaN where an event does not report the key."""
    values = [number(event, key) for event in events]
    return np.array([math.nan if value is None else value for value in values])


def _successes(episodes: Sequence[Event]) -> Series:
    return np.array([float(event.get("success") is True) for event in episodes])
