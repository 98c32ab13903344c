"""What a soak found: a verdict for each figure that may not grow, and for each that may not stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.results import describe, table
from benchmarks.soak.trend import Bound, Trend, trend_of
from benchmarks.soak.watch import Sample

FIGURES: tuple[tuple[str, str, Bound], ...] = (
    # field, title, how much it may grow
    ("num_processes", "processes", Bound(share=0.15, least=6)),
    ("num_displays", "X displays", Bound(share=0.15, least=1.5)),
    ("num_fds", "open file descriptors", Bound(share=0.1, least=40)),
    ("num_files", "temporary files", Bound(share=0.15, least=8)),
    ("num_leased", "leased desktops", Bound(share=0.15, least=1.5)),
    ("memory_mib", "memory (MiB)", Bound(share=0.15, least=150)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is there after the end and should not be."""

    processes: list[str]  # command lines
    files: list[str]
    groups: list[str]  # control groups
    x_sockets: list[str]
    num_leases: int
    audit: str  # findings of `dart-gui db check`; empty for none


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    samples: list[Sample]
    num_episodes: int
    num_train_steps: int
    num_envs_replaced: int
    returncode: int
    left: Left


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    what: str
    held: bool
    detail: str
    trend: Trend | None = None


def judge(outcome: Outcome, *, warm_up_s: float) -> list[Verdict]:
    """Growth is judged over the samples after ``warm_up_s``.

    Raises:
        ValueError: there are too few of them.
    """
    warm = [sample for sample in outcome.samples if sample.at_s >= warm_up_s]
    verdicts = [_grows(warm, field, title, bound) for field, title, bound in FIGURES]
    left = outcome.left
    checks: list[tuple[str, Sequence[str]]] = [
        ("processes after the end", left.processes),
        ("files in its TMPDIR after the end", left.files),
        ("control groups after the end", left.groups),
        ("X sockets after the end", left.x_sockets),
        ("leases after the end", ["lease"] * left.num_leases),
        ("findings of `dart-gui db check`", left.audit.splitlines()),
    ]
    verdicts += [
        Verdict(what=what, held=not found, detail="; ".join(found[:5]) or "none")
        for what, found in checks
    ]
    ended = Verdict(
        what="exit code of the run", held=outcome.returncode == 0, detail=str(outcome.returncode)
    )
    worked = Verdict(
        what="episodes and train steps",
        held=outcome.num_episodes > 0 and outcome.num_train_steps > 0,
        detail=f"{outcome.num_episodes} and {outcome.num_train_steps}",
    )
    return [*verdicts, ended, worked]


def _grows(samples: Sequence[Sample], field: str, title: str, bound: Bound) -> Verdict:
    figure: Callable[[Sample], float] = lambda sample: float(getattr(sample, field))  # noqa: E731
    trend = trend_of([sample.at_s for sample in samples], [figure(each) for each in samples])
    detail = f"may grow by {max(bound.least, bound.share * trend.median):.0f}"
    return Verdict(what=title, held=bound.allows(trend), detail=detail, trend=trend)


def to_json(outcome: Outcome) -> dict[str, Any]:
    return asdict(outcome)


def render(values: dict[str, Any], outcome: Outcome, verdicts: Sequence[Verdict]) -> str:
    hours = outcome.samples[-1].at_s / 3600
    return "\n\n".join(
        [
            "# A long run on desktops",
            f"    {values['command']}",
            describe(values["machine"]),
            f"{hours:.2f} hours, {outcome.num_episodes} episodes, {outcome.num_train_steps} train "
            f"steps, {outcome.num_envs_replaced} desktops that broke and were replaced.",
            table(
                ["", "median", "range", "growth", "bound", ""],
                [_row(verdict) for verdict in verdicts if verdict.trend is not None],
            ),
            "Memory by module (MiB):\n\n" + _modules(outcome, values["warm_up_s"]),
            table(
                ["", "found", ""],
                [
                    [verdict.what, verdict.detail, _word(verdict)]
                    for verdict in verdicts
                    if verdict.trend is None
                ],
                align="lll",
            ),
            _method(values, outcome),
        ]
    )


def _row(verdict: Verdict) -> list[str]:
    trend = verdict.trend
    assert trend is not None
    spread = f"{trend.low:.0f}-{trend.high:.0f}"
    numbers = [f"{trend.median:.0f}", spread, f"{trend.growth:+.1f}", verdict.detail]
    return [verdict.what, *numbers, _word(verdict)]


def _modules(outcome: Outcome, warm_up_s: float) -> str:
    warm = [sample for sample in outcome.samples if sample.at_s >= warm_up_s]
    rows = []
    for name in sorted({name for sample in warm for name in sample.memory_by}):
        values = [sample.memory_by.get(name, 0.0) for sample in warm]
        trend = trend_of([sample.at_s for sample in warm], values)
        spread = f"{trend.low:.0f}-{trend.high:.0f}"
        rows.append([name, f"{trend.median:.0f}", spread, f"{trend.growth:+.1f}"])
    return table(["", "median", "range", "growth"], rows)


def _word(verdict: Verdict) -> str:
    return "held" if verdict.held else "**leaks**"


def _method(values: dict[str, Any], outcome: Outcome) -> str:
    return (
        "Everything that descends from the run (and from the env server, where there is one) is counted "
        f"{len(outcome.samples)} times over the run; growth is over the samples after "
        f"{values['warm_up_s']:g} s: the median of the slopes between all pairs of samples, times the "
        "duration. Desktops come and go with each episode, so every count has a wide range; a leak is a "
        "trend. Memory is the proportional set size. The run has a TMPDIR of its own: what is in it "
        "after the end was left by it, but for the empty folders that caches keep there per user."
    )
