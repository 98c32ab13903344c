"""The statistics of the benchmarks: small, pure, and tested."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A few repetitions of one measurement: their median, and from where to where they go."""

    median: float
    low: float
    high: float
    num_rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ``ValueError`` for no values, or one that is not finite."""
        if not values or not all(map(math.isfinite, values)):
            raise ValueError(f"a spread needs finite values, got {list(values)}")
        return cls(
            median=statistics.median(values),
            low=min(values),
            high=max(values),
            num_rounds=len(values),
        )

    def show(self, digits: int = 1) -> str:
        """``3.4 (3.1-3.9)``: median (min-max)."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def paired_ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """ours / theirs round by round: what slowed a round down slowed both of its halves.

    >>> paired_ratios([6.0, 9.0], [2.0, 3.0])
    [3.0, 3.0]

    Raises:
        ValueError: the rounds do not pair up, or one of ``theirs`` is not positive.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} rounds do not pair with {len(theirs)}")
    if any(each <= 0 for each in theirs):
        raise ValueError(f"a ratio to nothing is none: {list(theirs)}")
    return [a / b for a, b in zip(ours, theirs, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanOverSeeds:
    """The mean of one figure over independent runs, with what they spread by."""

    mean: float
    std: float  # of a single run (n - 1 in the denominator); 0 where there is one run
    low: float
    high: float
    num_seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> MeanOverSeeds:
        """Raises ``ValueError`` for no values."""
        if not values:
            raise ValueError("a mean over no seeds is unknown")
        return cls(
            mean=statistics.fmean(values),
            std=statistics.stdev(values) if len(values) > 1 else 0.0,
            low=min(values),
            high=max(values),
            num_seeds=len(values),
        )


def mean_curve(curves: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Place by place, the mean over the curves that have a value there; None where none has.

    Raises:
        ValueError: the curves differ in length.
    """
    columns = zip(*curves, strict=True)
    known = [[value for value in column if value is not None] for column in columns]
    return [statistics.fmean(values) if values else None for values in known]


def binned_rates(
    at: Sequence[float], successes: Sequence[bool], *, end: float, num_bins: int
) -> list[float | None]:
    """[num_bins] share of successes in each of the equal bins of [0, end); None where nothing fell.

    What lies at ``end`` or after it counts in the last bin.
    """
    hits, totals = [0] * num_bins, [0] * num_bins
    for moment, success in zip(at, successes, strict=True):
        place = min(num_bins - 1, max(0, int(moment / end * num_bins)))
        totals[place] += 1
        hits[place] += success
    return [hit / total if total else None for hit, total in zip(hits, totals, strict=True)]
