"""vLLM's prefix cache on recorded episodes: sticky routing against least loaded, and the history rule
``slide`` against ``block``."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks import results, vllm
from benchmarks.prefix.episodes import EPISODES, RecordedEpisode, load
from benchmarks.prefix.figures import (
    ARMS,
    BLOCK,
    LEAST_LOADED,
    SLIDE,
    STICKY,
    TRIMS,
    Arm,
    Replay,
    Rounds,
    draw,
)
from benchmarks.prefix.replay import BenchSettings, all_prompts, open_bench, turns
from benchmarks.processes import exit_on_sigterm
from benchmarks.results import describe, table
from benchmarks.stats import Spread, paired_ratios
from dart_gui.agent.registry import make_agent
from dart_gui.config import AgentConfig


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    exit_on_sigterm()
    episodes = load()[: args.episodes]
    with vllm.errors_to("prefix"), Progress() as progress:
        bar = progress.add_task("starting the servers", total=len(ARMS) * args.rounds + 1)

        def say(text: str) -> None:
            progress.update(bar, description=text, advance=1)

        rounds = asyncio.run(measure(args, episodes, say))
    values = {
        "command": results.command(argv),
        "machine": results.machine(),
        "servers": len(args.urls) or args.servers,
        "adopted": bool(args.urls),
        "clients": args.clients,
        "max_images": args.max_images,
        "pause_s": args.pause_s,
        "steps": [len(episode.steps) for episode in episodes],
        "rounds": {arm.name: list(map(asdict, found)) for arm, found in rounds.items()},
    }
    path = results.save(args.out, "prefix", values, render(values, rounds))
    draw(rounds, args.out / "prefix.png")
    print(path.read_text(encoding="utf-8"))


async def measure(
    args: argparse.Namespace, episodes: Sequence[RecordedEpisode], say: Callable[[str], None]
) -> Rounds:
    agents = {
        trim: make_agent(
            args.model, AgentConfig.model_validate({"max_images": args.max_images, "trim": trim})
        )
        for trim in TRIMS
    }
    prompts = all_prompts(episodes, agents)
    rounds: Rounds = {arm: [] for arm in ARMS}
    settings = BenchSettings(
        model=args.model,
        vllm=args.vllm,
        num_servers=args.servers,
        urls=tuple(args.urls),
        clients=args.clients,
        pause_s=args.pause_s,
    )
    async with open_bench(settings) as bench:
        # Unmeasured, so that the first replay does not pay for what a server does once in its life.
        await bench.replay(ARMS[0], prompts[ARMS[0].trim][: args.clients], key="warm-up")
        for number, arm in turns(ARMS, args.rounds):
            say(f"round {number + 1} of {args.rounds}: {arm.name}")
            rounds[arm].append(await bench.replay(arm, prompts[arm.trim], key=f"{number}"))
    return rounds


FIGURES: tuple[tuple[str, str, float, int], ...] = (
    # field, title, factor, digits
    ("hit_rate", "prompt tokens found in the cache (%)", 100, 1),
    ("computed_per_request", "prompt tokens computed per request", 1, 0),
    ("requests_per_s", "requests per second", 1, 2),
    ("prompt_tokens_per_s", "prompt tokens per second", 1, 0),
    ("latency_p50_s", "seconds per request, median", 1, 3),
    ("latency_p95_s", "seconds per request, 95th percentile", 1, 3),
)
COMPARISONS: tuple[tuple[str, Arm, Arm], ...] = (
    ("sticky / least loaded, slide", Arm(STICKY, SLIDE), Arm(LEAST_LOADED, SLIDE)),
    ("sticky / least loaded, block", Arm(STICKY, BLOCK), Arm(LEAST_LOADED, BLOCK)),
    ("block / slide, sticky", Arm(STICKY, BLOCK), Arm(STICKY, SLIDE)),
    ("block / slide, least loaded", Arm(LEAST_LOADED, BLOCK), Arm(LEAST_LOADED, SLIDE)),
    ("both / neither", Arm(STICKY, BLOCK), Arm(LEAST_LOADED, SLIDE)),
)


def render(values: dict[str, Any], rounds: Rounds) -> str:
    levels = [
        [title, *(Spread.of(_series(rounds[arm], field, by)).show(digits) for arm in ARMS)]
        for field, title, by, digits in FIGURES
    ]
    ratios = [
        [title, *(_ratio(rounds[ours], rounds[theirs], field) for _, ours, theirs in COMPARISONS)]
        for field, title, _, _ in FIGURES
    ]
    return "\n\n".join(
        [
            "# Prefix cache: routing and history",
            f"    {values['command']}",
            describe(values["machine"]),
            table(["", *(arm.name for arm in ARMS)], levels),
            table(["ratio", *(title for title, _, _ in COMPARISONS)], ratios),
            "![hit rates](prefix.png)",
            _method(values, len(rounds[ARMS[0]])),
        ]
    )


def _series(replays: Sequence[Replay], field: str, by: float = 1.0) -> list[float]:
    return [by * float(getattr(replay, field)) for replay in replays]


def _ratio(ours: Sequence[Replay], theirs: Sequence[Replay], field: str) -> str:
    """Paired by round; none where the other side found nothing at all."""
    below = _series(theirs, field)
    return "-" if min(below) <= 0 else Spread.of(paired_ratios(_series(ours, field), below)).show(2)


def _method(values: dict[str, Any], num_rounds: int) -> str:
    steps = values["steps"]
    return (
        f"Median (min-max) over {num_rounds} rounds; a round has each arm once, each time another one "
        "is first, on the same servers with their caches emptied before each, and a ratio is taken "
        "within its round. The hit rate is by vLLM's own counters.\n\n"
        f"The rollout service in front of {values['servers']} real vLLM servers "
        f"({'which ran already' if values['adopted'] else 'on CPU, float32'}) with the tiny agent. "
        f"{len(steps)} episodes of {min(steps)} to {max(steps)} steps, recorded with the real "
        f"browser (`python -m benchmarks.prefix.record`), are asked anew, {values['clients']} at a "
        f"time, {values['pause_s']:g} s between an answer and the next step. Their prompts show up to "
        f"{values['max_images']} screenshots and all earlier replies, by `agent.trim`; the recorded "
        "replies go into the history, so both routings send the same prompts. Least loaded is the same "
        "router without trajectory ids. A reply has as many tokens at most as the recorded one.\n\n"
        "What carries over is the hit rate: it depends on the prompts, on the number of servers and "
        "on the load, and not on how fast they are. Long prompts of a real model are nearly all "
        "screenshots, so under `slide` less of theirs than here is the fixed text at the beginning. "
        "More servers leave the least loaded one less often the right one. The throughput does not "
        "carry over: a prompt token of the tiny agent costs next to nothing, "
        "and what is left is vLLM's own work per request; with a model of 7B on a GPU the prompt "
        "tokens that are computed are most of a request's cost. The recorded reply is not "
        "the one that was just generated, so its tokens are computed again, which in a run they "
        "are not: all hit rates are a little low."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prefix",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    vllm.add_arguments(parser)
    parser.add_argument("--urls", nargs="*", default=[], help="of servers that run, as vllm.urls")
    parser.add_argument("--clients", type=int, default=8, help="episodes at a time")
    parser.add_argument("--episodes", type=int, default=24, help=f"of those in {EPISODES.name}")
    parser.add_argument("--max-images", type=int, default=5, help="screenshots of a prompt")
    parser.add_argument("--pause-s", type=float, default=0.1, help="of the environment, per step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the results")
    return parser


if __name__ == "__main__":
    main()
