"""A thousand concurrent episodes in one runner process, on the shipped fakes: CPU and memory.

The scheduler, the episode loop and the agent are the real ones; environments and policy are fakes
that cost little and take their time, as a browser and a model do. Once without and once with the real
ledger (SQLite) and blobs behind it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks import results
from benchmarks.episodes.play import Played, Settings
from benchmarks.processes import exit_on_sigterm
from benchmarks.results import describe, table
from benchmarks.stats import Spread

PLAIN, LEDGER = "without a ledger", "with ledger and blobs"


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    exit_on_sigterm()
    with Progress() as progress:
        bar = progress.add_task("episodes", total=3 * args.rounds)

        def say(text: str) -> None:
            progress.update(bar, description=text, advance=1)

        rounds, alone = measure(args, say)
    values = {
        "command": results.command(argv),
        "machine": results.machine(),
        "num_episodes": args.episodes,
        "num_steps": args.steps,
        "fakes_alone_us_per_step": alone,
        "rounds": {name: list(map(asdict, found)) for name, found in rounds.items()},
    }
    path = results.save(args.out, "episodes", values, render(values, rounds, alone))
    print(path.read_text(encoding="utf-8"))


def measure(
    args: argparse.Namespace, say: Callable[[str], None]
) -> tuple[dict[str, list[Played]], list[float]]:
    rounds: dict[str, list[Played]] = {PLAIN: [], LEDGER: []}
    alone = []
    for number in range(args.rounds):
        for name in rounds:
            say(f"round {number + 1} of {args.rounds}: {name}")
            rounds[name].append(Played(**_child(asdict(_settings(args, name)))))
        say(f"round {number + 1} of {args.rounds}: the fakes alone")
        alone.append(float(_child({"num_steps_alone": args.steps})))
    return rounds, alone


def _settings(args: argparse.Namespace, name: str) -> Settings:
    return Settings(
        num_episodes=args.episodes,
        num_steps=args.steps,
        answer_s=args.answer_s,
        num_ended=args.episodes,
        with_ledger=name == LEDGER,
        model=str(results.ROOT / "models" / "tiny-agent"),
    )


def _child(settings: dict[str, Any]) -> Any:
    """Each measurement has a process of its own: memory that another one left would count."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.episodes.play", json.dumps(settings)],
        cwd=results.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def render(values: dict[str, Any], rounds: dict[str, list[Played]], alone: list[float]) -> str:
    fakes_us = statistics.median(alone)
    rows = []
    for name, found in rounds.items():
        cpu = Spread.of([each.cpu_us_per_step for each in found])
        own = Spread.of([each.cpu_us_per_step - fakes_us for each in found])
        memory = Spread.of([each.kib_per_episode for each in found])
        rate = Spread.of([each.num_steps / each.wall_s for each in found])
        failed = sum(each.num_failed for each in found)
        shown = [cpu.show(0), own.show(0), memory.show(), rate.show(0), str(failed)]
        rows.append([name, str(min(each.most_at_once for each in found)), *shown])
    head = ["", "at once", "CPU µs per step", "of it the runner's", "KiB per episode", "steps/s"]
    return "\n\n".join(
        [
            "# Concurrent episodes",
            f"    {values['command']}",
            describe(values["machine"]),
            table([*head, "failed attempts"], rows),
            f"{values['num_episodes']} episodes at once in one process, {values['num_steps']} steps "
            "each, on scripted environments and a scripted policy; scheduler, episode loop and agent "
            "(without a transform of the screenshot) are the real ones. It is measured from the moment "
            "when all wait for the policy until as many have ended and given place to others. Median "
            f"(min-max) over {len(alone)} rounds. The fakes alone take {fakes_us:.0f} µs per step, most "
            "of it to make a PNG; that is left out of the runner's share. Memory is the growth of the "
            "process (PSS) "
            "from before the first episode, divided by the number of episodes; histories and "
            "screenshots are in it. The policy's pace bounds the steps per second.",
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.episodes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--episodes", type=int, default=1000, help="at once (default 1000)")
    parser.add_argument("--steps", type=int, default=8, help="of each episode (default 8)")
    parser.add_argument("--answer-s", type=float, default=1.5, help="of the policy (default 1.5)")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the results")
    return parser


if __name__ == "__main__":
    main()
