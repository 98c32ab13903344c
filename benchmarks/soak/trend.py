"""Whether a figure grows over time, beyond what it goes up and down by."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

MAX_POINTS = 240
"""Slopes of all pairs are taken: more samples than this are thinned out first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    median: float
    growth: float  # over the whole time, in the figure's own unit
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """How much a figure may grow: the larger of the two."""

    share: float  # of its median
    least: float

    def allows(self, trend: Trend) -> bool:
        return trend.growth <= max(self.least, self.share * trend.median)


def trend_of(at_s: Sequence[float], values: Sequence[float]) -> Trend:
    """Growth is the median of the slopes of all pairs (Theil 1950, Sen 1968) times the duration: single
    peaks, of which a run that starts and ends programs has many, do not move it.

    Raises:
        ValueError: fewer than 5 samples, or lengths that differ.
    """
    points = list(zip(at_s, values, strict=True))
    if len(points) < 5:
        raise ValueError(f"a trend needs 5 samples at least, got {len(points)}: give more time")
    thinned = points[:: -(-len(points) // MAX_POINTS)]
    slopes = [(b - a) / (t - s) for (s, a), (t, b) in combinations(thinned, 2) if t > s]
    return Trend(
        median=statistics.median(values),
        growth=statistics.median(slopes) * (points[-1][0] - points[0][0]),
        low=min(values),
        high=max(values),
    )
