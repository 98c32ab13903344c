"""What an update cost those who asked meanwhile."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.update.pool import Answered


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateCost:
    way: str
    update_s: float  # until all servers serve the new weights
    none_open_s: float  # of it with no server that takes requests
    num_requests: int  # that were in flight or began during the update
    num_delayed: int  # of them slower than any request before the update
    num_resent: int  # of them lost with their server and sent again
    latency_before_s: float  # median
    latency_p50_s: float  # of the requests above
    latency_max_s: float


def cost(
    way: str,
    *,
    before: Sequence[Answered],
    during: Sequence[Answered],
    update_s: float,
    none_open_s: float,
) -> UpdateCost:
    """Raises ``ValueError`` where a side has no request: the load was too low for the figures."""
    if not before or not during:
        raise ValueError(f"{len(before)} requests before and {len(during)} during the update")
    usual = [each.ended - each.began for each in before]
    latencies = [each.ended - each.began for each in during]
    return UpdateCost(
        way=way,
        update_s=update_s,
        none_open_s=none_open_s,
        num_requests=len(during),
        num_delayed=sum(each > max(usual) for each in latencies),
        num_resent=sum(each.resent > 0 for each in during),
        latency_before_s=statistics.median(usual),
        latency_p50_s=statistics.median(latencies),
        latency_max_s=max(latencies),
    )


def split(
    answered: Sequence[Answered], *, began: float, ended: float
) -> tuple[list[Answered], list[Answered]]:
    """Requests that were over before an update, and those that it could touch."""
    before = [each for each in answered if each.ended < began]
    during = [each for each in answered if each.ended >= began and each.began <= ended]
    return before, during
