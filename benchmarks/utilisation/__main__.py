"""Wall clock and environment utilisation of an episode: our cluster, and the published client's way.

Both play the same steps on the same kind of desktop with the same model, which is a sleep of 2 to
4 s. Besides the two, ours with one trait of the published way at a time: fixed waits, no warm pool,
a process for each screenshot, one for each action. All arms play at once.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks import results
from benchmarks.processes import exit_on_sigterm
from benchmarks.utilisation import published
from benchmarks.utilisation.episode import MIN_STEPS, Setting, Stage, Traits
from benchmarks.utilisation.figures import Played
from benchmarks.utilisation.report import OURS, PUBLISHED, render
from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.pool import DesktopPool
from dart_gui.env.desktop.tasks import TaskFolder
from dart_gui.env.providers.protocol import Provider
from dart_gui.errors import EnvError
from dart_gui.launch.env_server import ServerOptions, make_provider

TASKS = Path(__file__).with_name("tasks")


def arms(*, tree: bool) -> dict[str, Traits]:
    """By name, in the order of the report."""
    all_traits = Traits(waits=True, no_pool=True, scrot=True, pyautogui=True, tree=tree)
    found = {
        OURS: Traits(),
        PUBLISHED: all_traits,
        "fixed waits": Traits(waits=True),
        "no warm pool": Traits(no_pool=True),
        "a process per screenshot": Traits(scrot=True),
        "a process per action": Traits(pyautogui=True),
    }
    return found | ({"accessibility tree": Traits(tree=True)} if tree else {})


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.steps < MIN_STEPS:
        parser.error(f"--steps must be {MIN_STEPS} at least, for the evaluation")
    exit_on_sigterm()
    packages = published.fetch_packages()
    with Progress() as progress, tempfile.TemporaryDirectory(prefix="du-", dir="/tmp") as place:
        options = ServerOptions(
            folder=Path(place), provider=args.provider, width=args.width, height=args.height
        )
        bar = progress.add_task("episodes", total=args.rounds * len(arms(tree=True)))

        def say(text: str) -> None:
            progress.update(bar, description=text, advance=1)

        episodes, tree = asyncio.run(measure(args, make_provider(options), packages, say))
    values = {
        "command": results.command(argv),
        "machine": results.machine(),
        "num_steps": args.steps,
        **{name: getattr(args, name) for name in ("provider", "width", "height")},
        **{name: getattr(args, name) for name in ("low_s", "high_s", "reset_wait_s")},
        "tree": tree,
        "episodes": {name: [_json(each) for each in played] for name, played in episodes.items()},
    }
    path = results.save(args.out, "utilisation", values, render(values, episodes))
    print(path.read_text(encoding="utf-8"))


async def measure(
    args: argparse.Namespace, provider: Provider, packages: bytes, say: Callable[[str], None]
) -> tuple[dict[str, list[Played]], bool]:
    """Episodes by arm, and whether the desktop serves the accessibility tree."""
    await provider.start()
    try:
        tree = await _has_tree(provider)
        chosen = arms(tree=tree)
        async with asyncio.TaskGroup() as group:
            tasks = {
                name: group.create_task(_rounds(name, traits, args, provider, packages, say))
                for name, traits in chosen.items()
            }
        return {name: task.result() for name, task in tasks.items()}, tree
    finally:
        for desktop in await provider.find():
            await provider.destroy(desktop.desktop_id)
        await provider.close()


async def _rounds(
    name: str,
    traits: Traits,
    args: argparse.Namespace,
    provider: Provider,
    packages: bytes,
    say: Callable[[str], None],
) -> list[Played]:
    async with AsyncExitStack() as stack:
        pool = DesktopPool(provider, max_taken=1, spares=0 if traits.no_pool else 1)
        await pool.start()
        stack.push_async_callback(pool.close)
        stage = Stage(pool, TaskFolder(TASKS, name="benchmark"), packages)
        played = []
        for number in range(args.rounds):
            while not traits.no_pool and not pool.stats().num_ready:
                await asyncio.sleep(0.05)  # a pool that is warm is what is measured
            setting = Setting(
                num_steps=args.steps,
                seed=number,
                low_s=args.low_s,
                high_s=args.high_s,
                reset_wait_s=args.reset_wait_s,
            )
            played.append(await stage.play(name, traits, setting))
            say(f"round {number + 1} of {args.rounds}: {name}, {played[-1].wall_s:.0f} s")
        return played


async def _has_tree(provider: Provider) -> bool:
    desktop = await provider.create("tree")
    client = GuestClient(desktop.address)
    try:
        await published.tree(client)
        return True
    except EnvError:
        return False
    finally:
        await client.close()
        await provider.destroy("tree")


def _json(played: Played) -> dict[str, Any]:
    parts = {part.value: round(seconds, 4) for part, seconds in played.seconds.items()}
    return {"wall_s": round(played.wall_s, 3), "seconds": parts}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.utilisation",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--provider", default="xvfb", help="of the desktops")
    parser.add_argument("--steps", type=int, default=15, help="of an episode")
    parser.add_argument("--rounds", type=int, default=3, help="episodes of each arm")
    parser.add_argument("--low-s", type=float, default=2.0, help="fastest answer of the model")
    parser.add_argument("--high-s", type=float, default=4.0, help="slowest one")
    parser.add_argument("--width", type=int, default=1280, help="of the screen")
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument(
        "--reset-wait-s",
        type=float,
        default=published.RESET_WAIT_S,
        help="the published wait after a reset; shorter only to try this benchmark",
    )
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the results")
    return parser


if __name__ == "__main__":
    main()
