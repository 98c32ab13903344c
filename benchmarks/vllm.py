"""What the benchmarks share that start real vLLM servers for the tiny agent."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import results

# A small KV cache, blocks small enough for short prefixes, no compiler, no pinning to cores.
ARGS = ["--enforce-eager", "--kv-cache-memory-bytes", "67108864", "--block-size", "32"]
ENV = ["TORCHDYNAMO_DISABLE=1", "VLLM_CPU_OMP_THREADS_BIND=nobind"]


@contextmanager
def errors_to(name: str) -> Iterator[None]:
    """The servers write a lot to the standard error that they inherit: into a log of this name."""
    path = results.ROOT / ".bench" / f"{name}.log"
    print(f"the servers' log: {path}")
    path.parent.mkdir(exist_ok=True)
    own = os.dup(2)
    try:
        with path.open("wb") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(own, 2)  # what ends us is for who started us
        os.close(own)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    vllm = ".venv-vllm/bin/vllm"
    parser.add_argument("--vllm", default=vllm, help="made by scripts/setup_vllm.py")
    parser.add_argument("--model", type=Path, default=Path("models/tiny-agent"))
    parser.add_argument("--servers", type=int, default=2)
