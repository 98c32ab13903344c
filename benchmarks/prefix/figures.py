"""What one replay says, and how two of them compare."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

STICKY, LEAST_LOADED = "sticky", "least loaded"
SLIDE, BLOCK = "slide", "block"
ROUTINGS, TRIMS = (STICKY, LEAST_LOADED), (SLIDE, BLOCK)


@dataclass(frozen=True, slots=True)
class Arm:
    routing: str
    trim: str

    @property
    def name(self) -> str:
        return f"{self.routing}, {self.trim}"


ARMS = tuple(Arm(routing, trim) for trim in TRIMS for routing in ROUTINGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """All episodes once, under one arm."""

    num_requests: int
    num_prompt_tokens: int
    num_looked_up: int  # prompt tokens, by the servers' own count
    num_found: int  # of them in the prefix cache
    seconds: float
    latency_p50_s: float
    latency_p95_s: float

    @property
    def hit_rate(self) -> float:
        return self.num_found / self.num_looked_up

    @property
    def requests_per_s(self) -> float:
        return self.num_requests / self.seconds

    @property
    def prompt_tokens_per_s(self) -> float:
        return self.num_prompt_tokens / self.seconds

    @property
    def computed_per_request(self) -> float:
        """Prompt tokens that were not found, and so computed."""
        return (self.num_looked_up - self.num_found) / self.num_requests


Rounds = dict[Arm, list[Replay]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    num_prompt_tokens: int
    seconds: float


def replay_of(
    asked: Sequence[Asked], *, seconds: float, num_looked_up: int, num_found: int
) -> Replay:
    """Raises ``ValueError`` where the servers looked up other tokens than were asked: another load
    was there, or a request was computed twice."""
    tokens = sum(each.num_prompt_tokens for each in asked)
    if num_looked_up != tokens:
        raise ValueError(
            f"the servers looked up {num_looked_up} tokens of prompts that have {tokens}"
        )
    latencies = [each.seconds for each in asked]
    return Replay(
        num_requests=len(asked),
        num_prompt_tokens=tokens,
        num_looked_up=num_looked_up,
        num_found=num_found,
        seconds=seconds,
        latency_p50_s=statistics.median(latencies),
        latency_p95_s=statistics.quantiles(latencies, n=20, method="inclusive")[-1],
    )


def draw(rounds: Rounds, path: Path) -> None:
    """Hit rates: a bar at the median of each arm, a dot for each round."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.38
    for shift, routing in enumerate(ROUTINGS):
        for place, trim in enumerate(TRIMS):
            rates = [100 * each.hit_rate for each in rounds[Arm(routing, trim)]]
            at = place + (shift - 0.5) * width
            label = routing if place == 0 else None
            bar = axes.bar(
                at, statistics.median(rates), width * 0.94, color=f"C{shift}", label=label
            )
            axes.bar_label(bar, fmt="%.0f", padding=4)
            axes.plot([at] * len(rates), rates, "k.", markersize=4)
    axes.set_xticks(range(len(TRIMS)), [f"history: {trim}" for trim in TRIMS])
    axes.set_ylabel("prompt tokens found in the cache (%)")
    axes.set_ylim(0, 100)
    axes.legend(loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
