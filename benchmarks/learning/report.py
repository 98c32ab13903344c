"""``docs/results/learning.md`` from the outcomes of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.learning.outcome import Outcome
from benchmarks.learning.seeds import ranges_are_disjoint
from benchmarks.learning.variety import FEW, Variety
from benchmarks.results import describe, table, verdict
from benchmarks.stats import MeanOverSeeds
from dart_gui.env.suites import EVAL_SEEDS, TRAIN_SEEDS
from dart_gui.launch.progress import Event
from dart_gui.launch.report import format_rate

GOALS = {"sampled": 30.0, "greedy": 10.0}
"""Points of success on held-out seeds, mean of the seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    trained: list[Outcome]
    control: Outcome
    varieties: list[Variety]
    machine: dict[str, Any]
    command: str

    @property
    def runs(self) -> list[Outcome]:
        return [*self.trained, self.control]

    def gain(self, decoding: str) -> MeanOverSeeds:
        return MeanOverSeeds.of([outcome.gain(decoding) for outcome in self.trained])


def render(learning: Learning) -> str:
    return "\n\n".join(
        [
            "# Learning",
            f"    {learning.command}",
            _introduction(learning),
            describe(learning.machine),
            "## Gains",
            goals(learning),
            "Success on held-out seeds in percent, with the 95 % Wilson interval of each evaluation:",
            _success(learning),
            "![success of the training episodes](learning/success.png)",
            "## Per task",
            f"Held-out success in percent, mean (min-max) over {_seeds(learning)}.",
            _per_task(learning),
            "![success of the training episodes, per task](learning/tasks.png)",
            "## What was trained on and what was evaluated on",
            _disjoint(learning),
            _variety(learning.varieties),
            "## The runs",
            _runs(learning.runs),
            _cpu(learning.runs),
        ]
    )


def _introduction(learning: Learning) -> str:
    first = learning.trained[0]
    evaluated = first.evals["after sampled"]["num_episodes"]
    return (
        f"Training with {_seeds(learning)} for {first.curve_min:g} minutes each, and the "
        f"control: the same run (seed {learning.control.seed}) with learning rate 0. Each run "
        f"measures random clicks, the shipped agent and the trained one on the same {evaluated} "
        "held-out episodes, sampled at temperature 1 and greedy."
    )


def goals(learning: Learning) -> str:
    """One line for each target: what came out, and whether it is met."""
    lines = []
    for decoding, goal in GOALS.items():
        gain = learning.gain(decoding)
        lines.append(
            f"- {decoding}: **{gain.mean:+.1f} points**, mean of {gain.num_seeds} (standard deviation "
            f"{gain.std:.1f}, {gain.low:+.1f} to {gain.high:+.1f}); goal {goal:+g}: "
            f"{verdict(gain.mean >= goal)}. Control: {learning.control.gain(decoding):+.1f}."
        )
    return "\n".join(lines)


def _success(learning: Learning) -> str:
    floor = [format_rate(learning.trained[0].evals["floor"])]
    rows = [["random clicks", *floor, "", "", "", "", ""]]
    for outcome in learning.runs:
        cells = [
            cell
            for decoding in GOALS
            for cell in (
                format_rate(outcome.evals[f"before {decoding}"]),
                format_rate(outcome.evals[f"after {decoding}"]),
                f"{outcome.gain(decoding):+.1f}",
            )
        ]
        name = "control" if outcome.is_control else f"seed {outcome.seed}"
        rows.append([name, *cells])
    rows.append([f"**mean of {len(learning.trained)}**", *_means(learning)])
    head = ["", "before, sampled", "after, sampled", "gain", "before, greedy", "after, greedy"]
    return table([*head, "gain"], rows)


def _means(learning: Learning) -> list[str]:
    cells = []
    for decoding in GOALS:
        for phase in ("before", "after"):
            rates = [o.evals[f"{phase} {decoding}"]["success_rate"] for o in learning.trained]
            cells.append(_mean(rates))
        gain = learning.gain(decoding)
        cells.append(f"**{gain.mean:+.1f}** (sd {gain.std:.1f})")
    return cells


def _per_task(learning: Learning) -> str:
    kinds = ["before sampled", "after sampled", "before greedy", "after greedy"]
    first = learning.trained[0].evals
    rows = []
    for task in sorted(first["after sampled"]["per_task"]):
        cells = [
            _mean([_task_rate(o.evals[kind], task) for o in learning.trained]) for kind in kinds
        ]
        control = _mean([_task_rate(learning.control.evals["after sampled"], task)])
        floor = _mean([_task_rate(first["floor"], task)])
        rows.append([f"`{task}`", floor, *cells, control])
    head = ["task", "random", *(kind.replace(" ", ", ") for kind in kinds), "control, sampled"]
    return table(head, rows)


def _task_rate(event: Event, task: str) -> float:
    return float(event["per_task"][task]["success_rate"])


def _mean(rates: Sequence[float]) -> str:
    spread = MeanOverSeeds.of([100 * rate for rate in rates])
    if spread.low == spread.high:
        return f"{spread.mean:.1f}"
    return f"{spread.mean:.1f} ({spread.low:.1f}-{spread.high:.1f})"


def _disjoint(learning: Learning) -> str:
    checks = [outcome.seeds for outcome in learning.runs]
    shared = sum(check["num_shared"] for check in checks)
    holds = shared == 0 and ranges_are_disjoint()
    last = max(check["highest_evaluated"] for check in checks)
    return (
        f"Training seeds come from [{TRAIN_SEEDS.start}, {TRAIN_SEEDS.stop}), evaluation seeds from "
        f"[{EVAL_SEEDS.start}, {EVAL_SEEDS.stop}): "
        f"{'disjoint' if holds else '**not disjoint**'}. Checked in the ledgers of the runs: of "
        f"{sum(check['num_trained'] for check in checks)} instances that were planned for training "
        f"(seeds {min(check['lowest_trained'] for check in checks)} to "
        f"{max(check['highest_trained'] for check in checks)}), {shared} have an evaluation seed; "
        f"evaluated were {checks[0]['num_evaluated']} seeds of each task "
        f"({checks[0]['lowest_evaluated']} to {last})."
    )


def _variety(varieties: Sequence[Variety]) -> str:
    few = [each for each in varieties if each.hardly_varies]
    names = ", ".join(f"`{each.task_id}` ({each.num_distinct})" for each in few) or "none"
    rows = [
        [
            f"`{each.task_id}`",
            str(each.num_distinct),
            str(each.num_instructions),
            f"{each.num_known} of {each.num_held_out}",
        ]
        for each in varieties
    ]
    head = ["task", "distinct instances", "distinct instructions", "held-out ones seen before"]
    return (
        "Different seeds are not always different instances. Of "
        f"{varieties[0].num_train} training seeds per task, these many differ in instruction or first "
        f"screenshot; the last column says how many held-out seeds look like one of them. Tasks whose "
        f"instances hardly vary (fewer than {FEW:.0%} distinct): {names}. On these a held-out seed "
        "shows little more than that the task was learnt.\n\n" + table(head, rows)
    )


def _runs(runs: Sequence[Outcome]) -> str:
    rows = [
        [
            outcome.name,
            f"{outcome.lr:g}",
            str(outcome.num_train_steps),
            str(outcome.num_episodes),
            f"{outcome.train_min:.1f}",
            f"{outcome.staleness_max:g} (limit {outcome.max_staleness})",
            str(outcome.num_starts - 1),
            str(outcome.num_restarts),
        ]
        for outcome in runs
    ]
    head = ["run", "learning rate", "train steps", "episodes", "minutes", "staleness at most"]
    return table([*head, "resumed", "processes started again"], rows)


def _cpu(runs: Sequence[Outcome]) -> str:
    modules = sorted({module for outcome in runs for module in outcome.cpu_s})
    if not modules:
        return ""
    rows = []
    for module in modules:
        rows.append([module, *(_cpu_cell(outcome, module) for outcome in runs)])
    head = ["module", *(outcome.name for outcome in runs)]
    return (
        "CPU seconds while training, sampled once a second (share of one core in brackets):\n\n"
        + table(head, rows)
    )


def _cpu_cell(outcome: Outcome, module: str) -> str:
    seconds = outcome.cpu_s.get(module, 0.0)
    share = seconds / outcome.cpu_wall_s if outcome.cpu_wall_s else 0.0
    return f"{seconds:.0f} ({share:.0%})"


def _seeds(learning: Learning) -> str:
    names = [str(outcome.seed) for outcome in learning.trained]
    if len(names) == 1:
        return f"seed {names[0]}"
    return f"seeds {', '.join(names[:-1])} and {names[-1]}"
