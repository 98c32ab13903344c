"""``report.md`` of a run, finished or not: what it did, its curves, success before and after."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dart_gui import metrics
from dart_gui.config import Config
from dart_gui.files import write_whole
from dart_gui.launch import pinned
from dart_gui.launch.process import ProcessState
from dart_gui.launch.progress import Event, Progress, number
from dart_gui.launch.run_folder import RunFolder

ADVICE = (
    "The run itself is untouched: free some space or mend the permissions, then write the report "
    "again with `dart-gui report`"
)
COLUMNS: tuple[tuple[str, str, bool], ...] = (
    # title, phase, greedy
    ("random floor", "floor", False),
    ("before, sampled", "before", False),
    ("before, greedy", "before", True),
    ("after, sampled", "after", False),
    ("after, greedy", "after", True),
)


def write_report(folder: RunFolder, config: Config) -> Path:
    """Draw the plots and write the report; may be called at any time, again and again.

    Raises:
        DataError: they cannot be written.
    """
    # matplotlib takes a second to import, which `dart-gui train` would wait for at its start.
    from dart_gui.launch.plots import draw_all

    events = list(metrics.read(folder.metrics))
    plots = draw_all(events, folder.plots)
    text = render(folder, config, events, plots)
    write_whole(folder.report, text, what="the report", advice=ADVICE)
    return folder.report


def render(
    folder: RunFolder, config: Config, events: Sequence[Event], plots: Sequence[Path]
) -> str:
    """The Markdown text."""
    from dart_gui.launch.curation_report import flow_table

    evals = [event for event in events if event.get("event") == "eval"]
    best = pinned.read_best(folder)
    parts = [f"# Run {folder.run_id}", summary(config, events), "## Success on held-out seeds"]
    parts += [success_table(evals)]
    if during := [event for event in evals if event.get("phase") == "during"]:
        parts += ["## Evaluations while training", during_table(during, best)]
    if alarms := [event for event in events if event.get("event") == "alarm"]:
        parts += ["## Alarms", alarm_table(alarms)]
    parts += ["## Curves"] if plots else []
    parts += [f"![{plot.stem}]({plot.relative_to(folder.path)})" for plot in plots]
    parts += flow_table(events)
    parts += [
        "## Reproduce",
        "The resolved configuration is in `config.toml` beside this file:\n\n"
        "    dart-gui train config.toml",
    ]
    return "\n\n".join(parts) + "\n"


def summary(config: Config, events: Sequence[Event]) -> str:
    train = [event for event in events if event.get("event") == "train_step"]
    episodes = [event for event in events if event.get("event") == "episode"]
    restarts = Counter(
        str(event.get("name"))
        for event in events
        if event.get("event") == "process" and event.get("state") == ProcessState.BACKOFF
    )
    last: Event = train[-1] if train else {}
    skipped = sum((number(event, "num_skipped_updates") or 0) > 0 for event in train)
    reasons = Counter(str(event.get("stop_reason")) for event in episodes)
    stalest = max((number(event, "staleness_max") or 0 for event in train), default=0)
    rows = [
        ("model", config.model.path),
        ("training ended", _stop_text(events)),
        ("train steps", f"{len(train)}" + (f" ({skipped} skipped)" if skipped else "")),
        ("time of training", f"{(number(last, 'elapsed_s') or 0) / 60:.1f} min"),
        ("training episodes", f"{len(episodes)}"),
        ("episodes ended by", _counts(reasons)),
        ("staleness at most", f"{stalest:g} (limit {config.data.max_staleness})"),
        ("processes started again", _counts(restarts)),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)])


def _stop_text(events: Sequence[Event]) -> str:
    """Why training ended; where it was opened again, the last time."""
    progress = Progress()
    for event in events:
        progress.fold(event)
    return str(progress.stop.get("text", "not yet"))


def best_text(best: Event) -> str:
    """One line on ``best.json``; empty where it is."""
    if not best:
        return ""
    return (
        f"checkpoints/best, policy version {best.get('policy_version')} of train step "
        f"{best.get('train_step')}: {format_rate(best)} % of {best.get('num_episodes')} held-out "
        f"episodes, {_decoding(best)}"
    )


def during_table(during: Sequence[Event], best: Event) -> str:
    """A row per evaluation while training; the kept one in bold."""
    lines = ["| train step | policy version | success | episodes |", "|---:|---:|---:|---:|"]
    for event in during:
        mark = "**" if event.get("policy_version") == best.get("policy_version") else ""
        lines.append(
            f"| {event.get('train_step')} | {event.get('policy_version')} | "
            f"{mark}{format_rate(event)}{mark} | {event.get('num_episodes')} |"
        )
    lines += ["", "Percent of episodes that succeeded, with the 95 % Wilson interval."]
    if best:
        lines += ["", f"The best is kept: {best_text(best)}."]
        lines += ["It was chosen for its figure, which is therefore too high by chance: measure it"]
        lines += ["again before you quote it (`dart-gui eval --run RUN --checkpoint best`)."]
    return "\n".join(lines)


def alarm_table(alarms: Sequence[Event]) -> str:
    lines = ["| at | alarm | | what |", "|---|---|---|---|"]
    for event in alarms:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(number(event, "at") or 0.0))
        name = " ".join(filter(None, [str(event.get("alarm")), str(event.get("subject") or "")]))
        lines.append(f"| {at} | {name} | {event.get('state')} | {event.get('text') or ''} |")
    return "\n".join(lines)


def _decoding(event: Event) -> str:
    temperature = number(event, "temperature") or 0.0
    return f"temperature {temperature:g}" if temperature else "greedy"


def success_table(evals: Sequence[Event]) -> str:
    """Percent with the 95 % interval, a row per task and one for all; the newest of each kind."""
    shown: list[tuple[str, Event]] = []
    for title, phase, greedy in COLUMNS:
        matching = [e for e in evals if e.get("phase") == phase and _is_greedy(e) == greedy]
        if matching:
            shown.append((title, matching[-1]))
    if not shown:
        return "No evaluation has been made before or after training: `dart-gui eval` makes one."
    tasks = sorted({task for _, event in shown for task in _per_task(event)})
    lines = [
        "| task | " + " | ".join(title for title, _ in shown) + " |",
        "|---|" + "---:|" * len(shown),
    ]
    for task in tasks:
        lines.append(_row(task, [_per_task(event).get(task, {}) for _, event in shown]))
    lines.append(_row("**all**", [event for _, event in shown]))
    lines += ["", "Percent of episodes that succeeded, with the 95 % Wilson interval.", ""]
    lines += gains({title: event for title, event in shown})
    return "\n".join(lines)


def gains(shown: dict[str, Event]) -> list[str]:
    """One line for each decoding that was measured before and after."""
    lines = []
    for decoding in ("sampled", "greedy"):
        before = number(shown.get(f"before, {decoding}", {}), "success_rate")
        after = number(shown.get(f"after, {decoding}", {}), "success_rate")
        if before is not None and after is not None:
            lines.append(
                f"- {decoding}: {100 * before:.1f} % before, {100 * after:.1f} % after: "
                f"{100 * (after - before):+.1f} points"
            )
    return lines


def format_rate(event: Event, digits: int = 1) -> str:
    """``31.2 (26.9-36.0)`` in percent; a dash where there is no figure.

    >>> format_rate({"success_rate": 0.5, "low": 0.4, "high": 0.6})
    '50.0 (40.0-60.0)'
    """
    rate, low, high = (number(event, key) for key in ("success_rate", "low", "high"))
    if rate is None:
        return "-"
    if low is None or high is None:
        return f"{100 * rate:.{digits}f}"
    return f"{100 * rate:.{digits}f} ({100 * low:.{digits}f}-{100 * high:.{digits}f})"


def _is_greedy(event: Event) -> bool:
    return event.get("phase") != "floor" and number(event, "temperature") == 0


def _per_task(event: Event) -> dict[str, Event]:
    value = event.get("per_task")
    return value if isinstance(value, dict) else {}


def _row(title: str, cells: Sequence[Event]) -> str:
    return f"| {title} | " + " | ".join(format_rate(cell) for cell in cells) + " |"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counter.most_common()) or "none"
