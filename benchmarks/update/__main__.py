"""A weight update of vLLM servers under load: in place, the requests finished or dropped, against a
restart of each server."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks import results, vllm
from benchmarks.processes import exit_on_sigterm
from benchmarks.results import describe, table
from benchmarks.stats import Spread, paired_ratios
from benchmarks.update.figures import UpdateCost, cost, split
from benchmarks.update.pool import ABORT, DRAIN, RESTART, WAYS, Log, ServerPool
from dart_gui.rollout.engines.base import EngineRequest
from dart_gui.rollout.engines.vllm_server import ModelSettings, VllmSettings
from dart_gui.types import SamplingParams, WeightsRef

Rounds = dict[str, list[UpdateCost]]


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    exit_on_sigterm()
    with (
        vllm.errors_to("update"),
        Progress() as progress,
        tempfile.TemporaryDirectory(prefix="dart-gui-") as place,
    ):
        bar = progress.add_task("starting the servers", total=len(WAYS) * args.rounds + 1)

        def say(text: str) -> None:
            progress.update(bar, description=text, advance=1)

        rounds = asyncio.run(measure(args, Path(place), say))
    values = {
        "command": results.command(argv),
        "machine": results.machine(),
        "servers": args.servers,
        "clients": args.clients,
        "rounds": {way: list(map(asdict, found)) for way, found in rounds.items()},
    }
    path = results.save(args.out, "update", values, render(values, rounds))
    print(path.read_text(encoding="utf-8"))


async def measure(args: argparse.Namespace, place: Path, say: Callable[[str], None]) -> Rounds:
    versions = _versions(args.model, place)
    model = ModelSettings(
        folder=args.model, max_context=1024, max_batch_size=8, dtype="float32", threads=1
    )
    pool = ServerPool(model, VllmSettings(executable=args.vllm, args=vllm.ARGS, env=vllm.ENV))
    rounds: Rounds = {way: [] for way in WAYS}
    try:
        await pool.start(args.servers)
        for way, number in _turns(args.rounds):
            say(f"round {number + 1} of {args.rounds}: {way}")
            rounds[way].append(await _one(pool, way, next(versions), args))
    finally:
        await pool.close()
    return rounds


async def _one(
    pool: ServerPool, way: str, weights: WeightsRef, args: argparse.Namespace
) -> UpdateCost:
    """A load that is steady before, during and after one update."""
    log, stop = Log(), asyncio.Event()
    clients = [asyncio.create_task(_client(pool, n, log, stop)) for n in range(args.clients)]
    try:
        await asyncio.sleep(args.before_s)
        began = time.monotonic()
        update_s = await pool.update(way, weights, log)
        ended = time.monotonic()
        stop.set()
        await asyncio.gather(*clients)
    finally:
        for client in clients:
            client.cancel()
    before, during = split(log.answered, began=began, ended=ended)
    return cost(way, before=before, during=during, update_s=update_s, none_open_s=log.none_open_s)


async def _client(pool: ServerPool, number: int, log: Log, stop: asyncio.Event) -> None:
    """Asks, looks at the answer for a moment as an environment does, and asks again."""
    seed = number
    while not stop.is_set():
        log.answered.append(await pool.ask(_request(seed)))
        seed += 1000
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.1)


def _request(seed: int) -> EngineRequest:
    messages = [{"role": "user", "content": f"Click button {seed}. " * 8}]
    sampling = SamplingParams(temperature=1.0, max_tokens=32, seed=seed)
    return EngineRequest(messages=messages, images={}, sampling=sampling)


def _versions(model: Path, place: Path) -> Iterator[WeightsRef]:
    """Without end; each differs from the one before it."""
    from safetensors.torch import load_file, save_file

    folders = [place / "a", place / "b"]
    for number, folder in enumerate(folders):
        shutil.copytree(model, folder)
        for file in folder.glob("*.safetensors"):
            tensors = load_file(file)
            moved = {name: tensor * (1 + 0.001 * (number + 1)) for name, tensor in tensors.items()}
            save_file(moved, file, metadata={"format": "pt"})
    version = 0
    while True:
        version += 1
        yield WeightsRef(policy_version=version, path=str(folders[version % 2]))


def _turns(num_rounds: int) -> Iterator[tuple[str, int]]:
    for number in range(num_rounds):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            yield way, number


FIGURES = (
    ("update_s", "seconds until all serve the new weights", 2),
    ("none_open_s", "of them without any server", 2),
    ("num_requests", "requests in flight or begun meanwhile", 0),
    ("num_delayed", "of them slower than any before", 0),
    ("num_resent", "of them lost or dropped, and sent again", 0),
    ("latency_before_s", "latency before the update, median (s)", 2),
    ("latency_p50_s", "latency meanwhile, median (s)", 2),
    ("latency_max_s", "latency meanwhile, longest (s)", 2),
)


def render(values: dict[str, Any], rounds: Rounds) -> str:
    rows = []
    for name, title, digits in FIGURES:
        found = {way: [float(getattr(each, name)) for each in rounds[way]] for way in WAYS}
        levels = [Spread.of(found[way]).show(digits) for way in WAYS]
        ratios = [
            Spread.of(paired_ratios(found[way], found[DRAIN])).show(1)
            if min(found[DRAIN]) > 0
            else "-"
            for way in (ABORT, RESTART)
        ]
        rows.append([title, *levels, *ratios])
    return "\n\n".join(
        [
            "# Weight update: in place and by restart",
            f"    {values['command']}",
            describe(values["machine"]),
            table(["", *WAYS, "abort / drain", "restart / drain"], rows),
            _method(values, len(rounds[DRAIN])),
        ]
    )


def _method(values: dict[str, Any], num_rounds: int) -> str:
    return (
        f"Median (min-max) over {num_rounds} rounds; each has one update in each way, in "
        "alternating order, and a ratio is taken within its round. "
        f"{values['servers']} real `vllm serve` on CPU with the tiny agent, {values['clients']} "
        "clients that ask again 0.1 s after each answer, one update at a time over the servers; a "
        "request goes to the open server with the fewest in flight.\n\n"
        "In place: a server is drained, takes the weights through the engine `vllm` (pause, reload, "
        "caches cleared, checksum and probe), and comes back. With abort it is not waited for what it "
        "answers: that is dropped and sent again whole. The replies of this load are of 32 tokens at "
        "most, so there is little to wait for; the longer they are, the more a drain takes and an "
        "abort throws away. Restart, as the published system does "
        "it: the process is ended with what it is answering, which is sent again elsewhere, and "
        "`vllm serve` is started on the new folder.\n\n"
        "The model has a few million parameters and runs without compilation. With 7B on a GPU a "
        "restart also reads 16 GB, allocates the KV cache and captures CUDA graphs, which takes "
        "minutes; in place, the 16 GB are read too. So the restart is understated here."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.update",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    vllm.add_arguments(parser)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--before-s", type=float, default=8.0, help="seconds of load before it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the results")
    return parser


if __name__ == "__main__":
    main()
