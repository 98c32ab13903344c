"""Training on desktops for an hour, and whether it leaks: processes, displays, files, memory, leases.

The run is a normal `dart-gui train`. While it goes on, its whole tree of processes is counted; after
a warm-up nothing may grow beyond its bound, and after the end nothing may be left. Exit code 1 where
something leaks.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.progress import Progress

from benchmarks import results
from benchmarks.processes import Process, exit_on_sigterm
from benchmarks.soak import runs
from benchmarks.soak.report import Left, Outcome, judge, render, to_json
from benchmarks.soak.watch import (
    Observer,
    Sample,
    files_in,
    left_groups,
    marked_with,
    sockets,
    still_running,
)

GRACE_S = 300.0
"""Beyond the time of training: for the start, and for the end in order."""
LEFT_S = 15.0
"""For the kernel to take down what was killed last."""


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    exit_on_sigterm()
    with Progress() as progress:
        bar = progress.add_task("starting", total=args.seconds)

        def say(sample: Sample) -> None:
            text = (
                f"{sample.num_processes} processes, {sample.num_displays} displays, "
                f"{sample.num_fds} descriptors, {sample.memory_mib:.0f} MiB"
            )
            progress.update(bar, description=text, completed=sample.at_s)

        # Not in TMPDIR: the path of a Unix socket has 107 bytes at most.
        with tempfile.TemporaryDirectory(prefix="soak-", dir="/tmp") as place:
            outcome = measure(args, Path(place), say)
    verdicts = judge(outcome, warm_up_s=args.warm_up_s)
    values = {
        "command": results.command(argv),
        "machine": results.machine(),
        "seconds": args.seconds,
        "warm_up_s": args.warm_up_s,
        **to_json(outcome),
    }
    path = results.save(args.out, "soak", values, render(values, outcome, verdicts))
    print(path.read_text(encoding="utf-8"))
    if not all(verdict.held for verdict in verdicts):
        raise SystemExit(1)


def measure(args: argparse.Namespace, place: Path, say: Callable[[Sample], None]) -> Outcome:
    """Raises ``RuntimeError`` where the run hangs, or is too short to be judged."""
    tmp = place / "t"
    tmp.mkdir()
    environ = {"TMPDIR": str(tmp)}
    x_sockets = sockets()
    follower = runs.Follower(place / "run" / "metrics.jsonl")
    with contextlib.ExitStack() as stack:
        overrides = [f"--{each}" for each in args.set]
        server = None
        if args.server:
            server = stack.enter_context(runs.server(place, environ, num_desktops=args.server))
            overrides += server.overrides()
        command = runs.train_command(args.config, place / "run", args.seconds, overrides)
        train = stack.enter_context(runs.started(command, place / "train.log", environ))
        roots = [train.pid, *([server.process.pid] if server else [])]
        leased = server.num_leased if server else lambda: follower.num_leased
        observer = Observer(roots, tmp, leased)
        samples = _watch(train, observer, follower, args, say)
        returncode = train.wait()
        num_leases = server.num_leased() if server else 0
    follower.read()
    follower.close()
    if returncode != 0:
        runs.keep_log(place, args.out)
    left = Left(
        processes=_left_processes(observer, place),
        files=_left_files(tmp),
        groups=left_groups(observer.groups),
        x_sockets=sorted(sockets() - x_sockets),
        num_leases=num_leases,
        audit=runs.audit(place / "run", environ),
    )
    return Outcome(
        samples=samples,
        num_episodes=follower.num_episodes,
        num_train_steps=follower.num_train_steps,
        num_envs_replaced=follower.num_envs_replaced,
        returncode=returncode,
        left=left,
    )


def _watch(
    train: subprocess.Popen[bytes],
    observer: Observer,
    follower: runs.Follower,
    args: argparse.Namespace,
    say: Callable[[Sample], None],
) -> list[Sample]:
    """Samples of the time of training; the end, when modules go one by one, is none of it."""
    samples: list[Sample] = []
    deadline = time.monotonic() + args.seconds + GRACE_S
    while train.poll() is None:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"the run did not end {GRACE_S:g} s after its time: {train.args!r} hangs"
            )
        follower.read()
        sample = observer.look()
        say(sample)
        if sample.at_s < args.seconds:
            samples.append(sample)
        with contextlib.suppress(subprocess.TimeoutExpired):
            train.wait(args.every)
    return samples


def _left_processes(observer: Observer, place: Path) -> list[str]:
    """After a while: what was killed last needs a moment to go."""
    deadline = time.monotonic() + LEFT_S
    while True:
        found: list[Process] = still_running(list(observer.seen.values()))
        found += [each for each in marked_with(str(place)) if each not in found]
        if not found or time.monotonic() > deadline:
            return [f"{each.pid} {each.command[:200]}" for each in found]
        time.sleep(0.2)


def _left_files(tmp: Path) -> list[str]:
    """But for the folders per user that stay for the next run, which are empty then."""
    kept = re.compile(r"(dart-desktops-\d+|torchinductor_\w+)")
    return [path for path in files_in(tmp) if not kept.fullmatch(Path(path).name)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    config = Path("configs/desktop-mini-tiny.toml")
    parser.add_argument("config", nargs="?", type=Path, default=config, help="configuration")
    parser.add_argument("--seconds", type=float, default=3600.0, help="of training")
    parser.add_argument("--warm-up-s", type=float, default=300.0, help="of it that do not count")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between samples")
    parser.add_argument(
        "--server",
        type=int,
        default=0,
        metavar="N",
        help="with the desktops from an env server of N; 0 for desktops of the run's own",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="another key of the configuration",
    )
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the results")
    return parser


if __name__ == "__main__":
    main()
