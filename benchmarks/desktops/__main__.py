"""Boot, reset, screenshot and action latency, and memory, of desktops by provider."""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.progress import Progress

from benchmarks import results
from benchmarks.desktops.probe import Plan, Probed, probe
from benchmarks.desktops.report import render
from benchmarks.processes import exit_on_sigterm
from dart_gui.errors import SetupError
from dart_gui.launch.env_server import ServerOptions, make_provider


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    exit_on_sigterm()
    plan = Plan(
        num_boots=args.boots,
        num_resets=args.resets,
        num_shots=args.shots,
        num_actions=args.actions,
        num_together=args.together,
    )
    names = args.providers.split(",")
    probed: dict[str, Probed] = {}
    missing: dict[str, str] = {}
    with Progress() as progress:
        bar = progress.add_task("starting", total=len(names) * plan.num_parts)
        for name in names:

            def say(text: str, name: str = name) -> None:
                progress.update(bar, description=f"{name}: {text}", advance=1)

            try:
                probed[name] = _probe(name, args, plan, say)
            except SetupError as error:
                missing[name] = str(error)
    values = {
        "command": results.command(argv),
        "machine": results.machine(),
        "width": args.width,
        "height": args.height,
        "plan": asdict(plan),
        "providers": {name: asdict(found) for name, found in probed.items()},
        "missing": missing,
    }
    path = results.save(args.out, "desktops", values, render(values, probed, missing))
    print(path.read_text(encoding="utf-8"))


def docker_overrides(image: str, environ: Mapping[str, str]) -> tuple[str, ...]:
    """For the provider ``docker``: ``image``, and what ``scripts/setup_docker.py`` has set up."""
    image = image or environ.get("DART_DOCKER_IMAGE", "")
    named = {"docker_host": environ.get("DART_DOCKER_HOST", ""), "docker_image": image}
    return tuple(f"env.{key}={value}" for key, value in named.items() if value)


def _probe(name: str, args: argparse.Namespace, plan: Plan, say: Callable[[str], None]) -> Probed:
    provider, _, image = name.partition("=")
    overrides = docker_overrides(image, os.environ) if provider == "docker" else ()
    # Not in TMPDIR: the path of a Unix socket has 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="bd-", dir="/tmp") as place:
        options = ServerOptions(
            folder=Path(place),
            provider=provider,
            width=args.width,
            height=args.height,
            overrides=overrides,
        )
        return asyncio.run(probe(make_provider(options), plan, say))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.desktops",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--providers", default="xvfb", help="docker=IMAGE for another image")
    parser.add_argument("--boots", type=int, default=12)
    parser.add_argument("--resets", type=int, default=12, help="with a warm pool, and without")
    parser.add_argument("--shots", type=int, default=200)
    parser.add_argument("--actions", type=int, default=100, help="of each kind")
    parser.add_argument("--together", type=int, default=6, help="desktops for the memory of one")
    parser.add_argument("--width", type=int, default=1280, help="of the screens")
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the results")
    return parser


if __name__ == "__main__":
    main()
