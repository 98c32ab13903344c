"""Does training lift the agent? Seeds of one configuration and its control, side by side.

Run it again after an interruption: finished runs are kept as JSON beside the report and are not
repeated, and one that was begun is continued.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks import results
from benchmarks.learning import figures
from benchmarks.learning.outcome import Outcome
from benchmarks.learning.report import Learning, goals, render
from benchmarks.learning.runs import RunSpec, finished, make, specs
from benchmarks.learning.variety import Variety, measure_variety
from benchmarks.processes import exit_on_sigterm
from dart_gui.config import Config
from dart_gui.files import write_whole
from dart_gui.runner.main import task_names

NAME = "learning"


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    exit_on_sigterm()
    console = Console()
    kept: Path = args.out / NAME
    seeds = [int(seed) for seed in args.seeds.split(",")]
    runs = specs(args.config, seeds, _overrides(args), args.runs)
    outcomes = [_outcome(console, spec, kept) for spec in runs]
    varieties = _varieties(kept, runs[0].config(), num_seeds=args.variety_seeds)
    learning = Learning(
        trained=outcomes[:-1],
        control=outcomes[-1],
        varieties=varieties,
        machine=_machine(kept),
        command=results.command(argv),
    )
    figures.draw_success(learning.trained, learning.control, kept / "success.png")
    figures.draw_tasks(learning.trained, learning.control, kept / "tasks.png")
    report = args.out / f"{NAME}.md"
    write_whole(report, render(learning).rstrip() + "\n")
    console.print(goals(learning), highlight=False, markup=False)
    console.print(f"report: {report}", highlight=False)


def _outcome(console: Console, spec: RunSpec, kept: Path) -> Outcome:
    outcome = finished(spec, kept)
    if outcome is not None:
        console.print(f"{spec.name}: finished before", highlight=False)
        return outcome
    console.print(f"{spec.name}: {' '.join(spec.overrides)}", highlight=False)
    return make(spec, kept)


def _varieties(kept: Path, config: Config, *, num_seeds: int) -> list[Variety]:
    """Measured once, and kept like a finished run."""
    path = kept / "variety.json"
    task_ids = task_names(config)
    if path.exists():
        found = [Variety(**each) for each in json.loads(path.read_text(encoding="utf-8"))]
        if [(v.task_id, v.num_train) for v in found] == [(name, num_seeds) for name in task_ids]:
            return found
    with Progress() as progress:
        total = len(task_ids) * (num_seeds + num_seeds // 2)
        bar = progress.add_task("looking at instances", total=total)
        measured = asyncio.run(
            measure_variety(
                config, task_ids, num_seeds=num_seeds, advance=lambda: progress.advance(bar)
            )
        )
    write_whole(path, json.dumps([asdict(each) for each in measured], indent=1) + "\n")
    return measured


def _machine(kept: Path) -> dict[str, object]:
    """Of the machine that made the runs: kept with them, since a report may be written elsewhere."""
    path = kept / "machine.json"
    if not path.exists():
        write_whole(path, json.dumps(results.machine(), indent=1) + "\n")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _overrides(args: argparse.Namespace) -> list[str]:
    overrides = list(args.set)
    if args.max_time is not None:
        overrides.append(f"run.max_time_s={args.max_time:g}")
    if args.eval_episodes is not None:
        overrides.append(f"eval.num_episodes={args.eval_episodes}")
    return overrides


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    config = Path("configs/miniwob-tiny.toml")
    parser.add_argument("config", nargs="?", type=Path, default=config, help=f"default {config}")
    parser.add_argument("--seeds", default="1,2,3", help="run.seed of each run (default 1,2,3)")
    parser.add_argument("--max-time", type=float, metavar="S", help="seconds of training per run")
    parser.add_argument("--eval-episodes", type=int, metavar="N", help="held-out episodes")
    parser.add_argument("--variety-seeds", type=int, default=100, metavar="N", help="default 100")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="any other key of the configuration, for all runs",
    )
    runs = Path("runs/learning")
    parser.add_argument("--runs", type=Path, default=runs, help=f"run folders (default {runs})")
    parser.add_argument(
        "--out", type=Path, default=results.RESULTS, help="folder of the report (docs/results)"
    )
    return parser


if __name__ == "__main__":
    main()
