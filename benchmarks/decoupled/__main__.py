"""Decoupled against coupled on the real browser and the real tiny model, in short segments in turn."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks import results
from benchmarks.decoupled.figures import Segment
from benchmarks.decoupled.segments import COUPLED, DECOUPLED, SegmentSpec, run_segment
from benchmarks.processes import exit_on_sigterm
from benchmarks.results import describe, table
from benchmarks.stats import Spread, paired_ratios

Rounds = dict[str, list[Segment]]


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    exit_on_sigterm()
    with Progress() as progress, tempfile.TemporaryDirectory(prefix="dart-gui-") as place:
        bar = progress.add_task("segments", total=2 * args.rounds * (args.seconds + START_S))

        def look(text: str, seconds: float) -> None:
            progress.update(bar, description=text, advance=seconds)

        rounds = measure(args, Path(place), look)
    values = {
        "command": results.command(argv),
        "machine": results.machine(),
        "seconds": args.seconds,
        "warm_up_s": args.warm_up_s,
        "overrides": _overrides(args),
        "rounds": {name: list(map(asdict, found)) for name, found in rounds.items()},
    }
    path = results.save(args.out, "decoupled", values, render(values, rounds))
    print(path.read_text(encoding="utf-8"))


START_S = 15.0  # about what starting and ending a run takes, for the progress bar


def measure(args: argparse.Namespace, place: Path, look: Callable[[str, float], None]) -> Rounds:
    rounds: Rounds = {DECOUPLED: [], COUPLED: []}
    for name, number in _turns(args.rounds):
        text = f"round {number + 1} of {args.rounds}: {name}"
        spec = SegmentSpec(
            name=name,
            config_path=args.config,
            # The two halves of a round plan the same tasks.
            overrides=(*_overrides(args), f"run.seed={number + 1}"),
            place=place / f"{number + 1}-{name}",
        )
        last = time.monotonic()

        def on_look(text: str = text) -> None:
            nonlocal last
            now = time.monotonic()
            look(text, now - last)
            last = now

        rounds[name].append(run_segment(spec, warm_up_s=args.warm_up_s, on_look=on_look))
    return rounds


def _turns(num_rounds: int) -> Iterator[tuple[str, int]]:
    """Every round has both; which is first alternates."""
    for number in range(num_rounds):
        order = (DECOUPLED, COUPLED) if number % 2 == 0 else (COUPLED, DECOUPLED)
        for name in order:
            yield name, number


def _overrides(args: argparse.Namespace) -> list[str]:
    fixed = [f"run.max_time_s={args.seconds:g}", "eval.before_after=false"]
    # Every group is trained, so both modes train what they collect, batch by batch: a coupled loop
    # that replaces groups without variance one by one would idle for that reason too.
    fixed += ["curation.skip_zero_variance=false", "launch.tensorboard=false"]
    return fixed + list(args.set)


FIGURES: tuple[tuple[str, str, float, int], ...] = (
    # field, title, factor, digits
    ("episodes_per_min", "episodes per minute", 1, 0),
    ("trained_samples_per_min", "trained samples per minute", 1, 0),
    ("env_utilisation", "environments in use (%)", 100, 0),
    ("worker_utilisation", "rollout worker busy (%)", 100, 0),
    ("trainer_utilisation", "trainer busy (%)", 100, 0),
)


def render(values: dict[str, Any], rounds: Rounds) -> str:
    rows = []
    for field, title, factor, digits in FIGURES:
        ours, theirs = (
            [factor * getattr(each, field) for each in rounds[name]]
            for name in (DECOUPLED, COUPLED)
        )
        ratio = Spread.of(paired_ratios(ours, theirs)).show(2) if min(theirs) > 0 else "-"
        rows.append([title, Spread.of(ours).show(digits), Spread.of(theirs).show(digits), ratio])
    staleness = Spread.of([each.staleness_mean for each in rounds[DECOUPLED]])
    rows.append(["staleness, mean", staleness.show(2), "0 by its bound", ""])
    return "\n\n".join(
        [
            "# Decoupled and coupled",
            f"    {values['command']}",
            describe(values["machine"]),
            table(["", DECOUPLED, COUPLED, "ratio"], rows),
            _method(values, len(rounds[DECOUPLED])),
        ]
    )


def _method(values: dict[str, Any], num_rounds: int) -> str:
    overrides = ", ".join(f"`{each}`" for each in values["overrides"])
    return (
        f"Median (min-max) over {num_rounds} rounds; each has a segment of {values['seconds']:g} s "
        "of training in either mode, in alternating order, and a ratio is taken within its round. A "
        "segment is a training run of its own with the real browser, model and trainer. It is measured "
        f"from the first train step that ends after {values['warm_up_s']:g} s to the last one, so over "
        "whole cycles.\n\n"
        "Coupled is the same system with `data.max_staleness = 0`: play one batch of groups, wait for "
        "all of its episodes, train, publish, wait for all workers to serve the new weights, and "
        "again. Decoupled is the configured bound. For both: "
        f"{overrides}.\n\n"
        "Environments in use are leased ones, of as many as there are slots. All modules share the "
        "cores of one machine: where they fill them, a module that no longer waits takes its time from "
        "the others, so the ratio is a lower bound of what machines of their own would give."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decoupled",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    config = Path("configs/miniwob-tiny.toml")
    parser.add_argument("config", nargs="?", type=Path, default=config, help="configuration")
    parser.add_argument("--seconds", type=float, default=40.0, help="of training per segment")
    parser.add_argument("--warm-up-s", type=float, default=8.0, help="of it that do not count")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="another key of the configuration, for both modes",
    )
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the results")
    return parser


if __name__ == "__main__":
    main()
