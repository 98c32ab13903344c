"""The ablation of the data curation, arm by arm.

    python -m benchmarks.ablation                      # what is missing, then the report
    python -m benchmarks.ablation --only-report
    python -m benchmarks.ablation --train-s 30 --eval-episodes 40 --seeds 1 --results /tmp/short

A trial whose result lies in ``--results`` is not run again, so an interrupted ablation goes on where it
stopped. Trials are ordered seed by seed, so that a part of them compares all arms.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.ablation.arms import ARMS
from benchmarks.ablation.report import write_report
from benchmarks.ablation.synthetic import measure_all
from benchmarks.ablation.trial import (
    Plan,
    make_pool,
    measure_before,
    result_path,
    run_trial,
    save,
)

HERE = Path(__file__).resolve().parent


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    plan = Plan(
        train_s=args.train_s,
        eval_episodes=args.eval_episodes,
        work=args.work.absolute(),
        results=args.results.absolute(),
        pool_per_task=args.pool_per_task,
        overrides=tuple(args.override),
    )
    if not args.only_report:
        run_missing(plan, num_seeds=args.seeds, only=args.arms)
    synthetic = plan.results / "synthetic.json"
    if not synthetic.is_file():
        save(synthetic, measure_all())
    report = write_report(plan.results, args.out)
    print(f"report: {report}")


def run_missing(plan: Plan, *, num_seeds: int, only: Sequence[str]) -> None:
    arms = [arm for arm in ARMS if not only or arm.name in only]
    trials = [(arm, seed) for seed in range(num_seeds) for arm in arms]
    missing = [trial for trial in trials if not result_path(plan, *trial).is_file()]
    check_alike(plan, [result_path(plan, *trial) for trial in trials if trial not in missing])
    print(f"{len(trials) - len(missing)} of {len(trials)} trials are there already", flush=True)
    if not missing:
        return
    make_pool(plan)
    before = plan.results / "before.json"
    if not before.is_file():
        save(before, measure_before(plan))
    for arm, seed in missing:
        started = time.monotonic()
        result = run_trial(plan, arm, seed)
        save(result_path(plan, arm, seed), result)
        rate = result["evaluation"]["success_rate"]
        print(
            f"{arm.name} seed {seed}: {100 * rate:.1f} % after {result['num_train_steps']} train "
            f"steps, {result['num_episodes']} episodes ({time.monotonic() - started:.0f} s)",
            flush=True,
        )


def check_alike(plan: Plan, paths: Sequence[Path]) -> None:
    """Exits where a result is of a trial of another length, which no arm may be compared with."""
    for path in paths:
        result = json.loads(path.read_text())
        found = (result["train_s"], result["evaluation"]["num_episodes"])
        if found != (plan.train_s, plan.eval_episodes):
            raise SystemExit(
                f"{path} is of a trial of {found[0]:g} s and {found[1]} episodes, and now they are of "
                f"{plan.train_s:g} s and {plan.eval_episodes}: name another folder with --results"
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--train-s", type=float, default=210.0, help="wall clock of training, s")
    parser.add_argument("--eval-episodes", type=int, default=320)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pool-per-task", type=int, default=8)
    parser.add_argument("--arms", nargs="*", default=[], choices=[arm.name for arm in ARMS])
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"), help="for the runs")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="of the report")
    parser.add_argument("--only-report", action="store_true")
    parser.add_argument(
        "--override", action="append", default=[], metavar="SECTION.KEY=VALUE", help="in every arm"
    )
    return parser


if __name__ == "__main__":
    main()
