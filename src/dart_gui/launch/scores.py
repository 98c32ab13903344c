"""Scores of trials as figures: success with its interval, pass@k, per domain and per task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from dart_gui.launch.osworld_results import Score
from dart_gui.runner.evaluate import SuccessRate, TaskResult, pass_at_k

NOTES = (
    "success: share of the evaluated episodes, with Wilson's 95 % interval, which takes episodes as "
    "independent.",
    "pass@k: chance that one of k attempts at an instance succeeds, unbiased, mean over instances "
    "(Chen et al., 2021, arXiv 2107.03374).",
    "reward: mean, partial credit included; OSWorld's own score.",
    "failed: episodes that the infrastructure failed; they are in no other figure.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of a task, of a domain, or of all."""

    result: TaskResult
    pass_at: dict[int, float | None]  # k -> mean over the instances with k attempts or more
    num_instances: int  # evaluated at least once
    num_missing: int  # trials that were not played yet

    def to_json(self) -> dict[str, Any]:
        """``pass_at`` has text keys, as JSON wants."""
        values = asdict(self)
        return (
            values.pop("result")
            | values
            | {"pass_at": {str(k): rate for k, rate in self.pass_at.items()}}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    overall: Figures
    by_domain: dict[str, Figures]
    by_task: dict[str, Figures]

    def to_json(self) -> dict[str, Any]:
        return {
            "overall": self.overall.to_json(),
            "by_domain": {name: each.to_json() for name, each in self.by_domain.items()},
            "by_task": {name: each.to_json() for name, each in self.by_task.items()},
        }


def summarise(
    scores: Mapping[str, Sequence[Score | None]],
    *,
    num_repeats: int,
    domain_of: Callable[[str], str],
) -> Summary:
    """Args:
    scores: task id -> of each planned trial; None where it was not played yet.
    """
    by_domain: dict[str, list[Score | None]] = defaultdict(list)
    for task_id, each in scores.items():
        by_domain[domain_of(task_id)] += each
    everything = [score for each in scores.values() for score in each]
    return Summary(
        overall=_figures(everything, num_repeats),
        by_domain={name: _figures(each, num_repeats) for name, each in sorted(by_domain.items())},
        by_task={name: _figures(each, num_repeats) for name, each in sorted(scores.items())},
    )


def _figures(scores: Sequence[Score | None], num_repeats: int) -> Figures:
    there = [score for score in scores if score is not None]
    successes: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for score in there:
        if score.outcome.reward is not None:
            task = score.trial.task
            successes[task.task_id, task.seed].append(score.outcome.success)
    return Figures(
        result=TaskResult.of([score.outcome for score in there]),
        pass_at={k: _mean_pass(list(successes.values()), k) for k in range(1, num_repeats + 1)},
        num_instances=len(successes),
        num_missing=len(scores) - len(there),
    )


def _mean_pass(instances: Sequence[Sequence[bool]], k: int) -> float | None:
    rates = [pass_at_k(len(each), sum(each), k) for each in instances if len(each) >= k]
    return sum(rates) / len(rates) if rates else None


# --- shown ---------------------------------------------------------------------------------


def header(what: str, summary: Summary) -> list[str]:
    num_repeats = max(summary.overall.pass_at)
    passes = [f"pass@{k}" for k in sorted({1, num_repeats})] if num_repeats > 1 else []
    return [what, "episodes", "success, % (95 %)", *passes, "reward", "steps", "failed"]


def row(name: str, figures: Figures) -> list[str]:
    num_repeats = max(figures.pass_at)
    passes = sorted({1, num_repeats}) if num_repeats > 1 else []
    result = figures.result
    return [
        name,
        str(result.success.num_episodes),
        _rate(result.success),
        *(_number(figures.pass_at[k], 100.0, 1) for k in passes),
        _number(result.mean_reward, 1.0, 3),
        _number(result.mean_steps, 1.0, 1),
        str(result.num_failed),
    ]


def table(what: str, rows: Mapping[str, Figures], summary: Summary) -> Table:
    """For a terminal; the last row is all of them."""
    head = header(what, summary)
    made = Table(box=SIMPLE_HEAD)
    made.add_column(head[0], overflow="fold")
    for name in head[1:]:
        made.add_column(name, justify="right")
    for name, figures in rows.items():
        made.add_row(*row(name, figures))
    made.add_section()
    made.add_row(*row("all", summary.overall))
    return made


def markdown(title: str, settings: Mapping[str, Any], summary: Summary) -> str:
    lines = [f"# {title}", ""]
    if summary.overall.num_missing:
        lines += [
            f"Not finished: {summary.overall.num_missing} episodes are still to be played.",
            "",
        ]
    for what, rows in (("domain", summary.by_domain), ("task", summary.by_task)):
        head = header(what, summary)
        lines += [f"## By {what}", "", _line(head), "|---" + "|---:" * (len(head) - 1) + "|"]
        lines += [_line(row(name, figures)) for name, figures in rows.items()]
        lines += [_line(row("**all**", summary.overall)), ""]
    lines += ["## Settings", ""]
    lines += [f"- `{name}`: `{value}`" for name, value in settings.items()]
    if failures := summary.overall.result.failures:
        reasons = ", ".join(f"{count} {reason}" for reason, count in failures.items())
        lines += ["", f"Failed by the infrastructure: {reasons}."]
    return "\n".join([*lines, "", *(f"- {note}" for note in NOTES), ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rate(success: SuccessRate) -> str:
    if success.rate is None or success.low is None or success.high is None:
        return "-"
    return f"{100 * success.rate:.1f} ({100 * success.low:.1f}-{100 * success.high:.1f})"


def _number(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{scale * value:.{digits}f}"
