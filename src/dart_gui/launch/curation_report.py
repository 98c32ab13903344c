"""What the data curation did in a run: a figure, and whether the trained data is like the dispatched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dart_gui.launch.progress import Event, number

TASKS_SHOWN = 12  # a figure of hundreds of lines says nothing; the most dispatched ones are drawn


def has_curation(train: Sequence[Event]) -> bool:
    return any("selected_fraction" in event for event in train)


def draw_curation(
    train: Sequence[Event], episodes: Sequence[Event], minutes: np.ndarray[Any, Any]
) -> Figure:
    """Six panels. ``minutes`` holds the training time of each of ``episodes``."""
    figure = Figure(figsize=(12.6, 5.2), dpi=110, layout="constrained")
    panels: Any = figure.subplots(2, 3)
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    sizes, limits, pool, selected, shares, lag = panels.flat
    _per_task(sizes, episodes, minutes, "group_size")
    sizes.set(title="attempts of a group", xlabel="minutes of training", ylim=(0, None))
    _per_task(limits, episodes, minutes, "max_steps")
    limits.set(title="step limit", xlabel="minutes of training", ylim=(0, None))
    limits.legend(fontsize="x-small", ncols=2)
    steps = [number(event, "train_step") or 0 for event in train]
    borrowed = np.cumsum([number(event, "num_borrowed") or 0 for event in train])
    pool.plot(steps, borrowed, label="borrowed successes so far")
    pool.set(title="experience pool", xlabel="train step", ylim=(0, None))
    weight = pool.twinx()
    weight.plot(steps, _percent(train, "borrowed_weight"), color="tab:orange")
    weight.set(ylabel="share of the loss weight (%)", ylim=(0, 100))
    for key in ("selected_fraction", "mask_fraction", "clip_fraction"):
        selected.plot(steps, _percent(train, key), label=key)
    selected.set(title="steps selected, tokens masked (%)", xlabel="train step", ylim=(0, 105))
    selected.legend(fontsize="small")
    _bars(shares, train, episodes)
    _staleness(lag, train, steps)
    return figure


def _percent(train: Sequence[Event], key: str) -> list[float]:
    return [100 * (number(event, key) or 0.0) for event in train]


def _per_task(
    axes: Axes, episodes: Sequence[Event], minutes: np.ndarray[Any, Any], key: str
) -> None:
    for task in _most_dispatched(episodes):
        own = [
            (at, number(event, key))
            for at, event in zip(minutes, episodes, strict=True)
            if event.get("task_id") == task and number(event, key) is not None
        ]
        if own:
            axes.plot(*zip(*own, strict=True), drawstyle="steps-post", label=_short(task))


def _most_dispatched(episodes: Sequence[Event]) -> list[str]:
    counts = Counter(str(event.get("task_id")) for event in episodes)
    return sorted(task for task, _ in counts.most_common(TASKS_SHOWN))


def _bars(axes: Axes, train: Sequence[Event], episodes: Sequence[Event]) -> None:
    trained: Counter[str] = Counter()
    for event in train:
        trained.update(event.get("trained_tasks") or {})
    dispatched = Counter(str(event.get("task_id")) for event in episodes)
    tasks = _most_dispatched(episodes)
    at = np.arange(len(tasks))
    for offset, label, counts in ((-0.2, "dispatched", dispatched), (0.2, "trained", trained)):
        total = max(1, counts.total())
        axes.barh(at + offset, [100 * counts[task] / total for task in tasks], 0.4, label=label)
    axes.set_yticks(at, [_short(task) for task in tasks], fontsize="x-small")
    axes.set(title="share of the trajectories (%)")
    axes.legend(fontsize="small")


def _staleness(axes: Axes, train: Sequence[Event], steps: Sequence[float]) -> None:
    buckets: list[Mapping[str, Any]] = [event.get("staleness_buckets") or {} for event in train]
    for name in sorted({name for bucket in buckets for name in bucket}, key=int):
        seen = [(s, b[name].get("ess")) for s, b in zip(steps, buckets, strict=True) if name in b]
        shown = [(step, 100 * ess) for step, ess in seen if ess is not None]
        if shown:
            axes.plot(*zip(*shown, strict=True), label=f"staleness {name}")
    axes.set(title="effective sample size (%)", xlabel="train step")
    if buckets and any(buckets):
        axes.legend(fontsize="small")


def _short(task: str) -> str:
    return task.partition("/")[2] or task


def flow_table(events: Sequence[Event]) -> list[str]:
    """The newest ``data_flow`` event as Markdown: per task, what was dispatched, skipped, trained."""
    flows = [event for event in events if event.get("event") == "data_flow"]
    if not flows:
        return []
    tasks: Mapping[str, Mapping[str, Any]] = flows[-1].get("tasks") or {}
    fates = ("skipped", "waiting", "trained")
    lines = [
        "| task | trajectories | skipped | waiting | trained | steps, all | steps, trained |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for task, flow in tasks.items():
        counts = [int(flow.get(fate, {}).get("num_trajectories", 0)) for fate in fates]
        total = sum(counts)
        steps = sum(f["num_trajectories"] * f["mean_steps"] for f in flow.values()) / max(1, total)
        trained = flow.get("trained", {}).get("mean_steps")
        shown = "-" if trained is None else f"{trained:.1f}"
        cells = [total, *counts, f"{steps:.1f}", shown]
        lines.append(f"| {task} | " + " | ".join(map(str, cells)) + " |")
    return [
        "## Dispatched and trained",
        "\n".join(lines),
        "Trajectories by the fate of their group. A group is skipped where there is nothing to learn "
        "from it; all others are trained, oldest first.",
    ]
