"""The task level of the curation: how many attempts, under which step limit, at which task next.

Pure functions; what they need to know of the past is in :class:`TaskPast`, which the planner reads
from the ledger anew for every group. So a restarted runner goes on as if nothing had happened.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dart_gui.data.rates import Outcome, Posterior, posterior
from dart_gui.data.sampler import stable_hash

MIN_SUCCESSES = 8  # without as many, the lengths of successes say too little for a step limit
PRESSING_SHARE = 0.1  # of the successes that needed the last step they were allowed
PROBE_SHARE = 10  # one group in so many runs under the ceiling


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPast:
    """What is known of one task."""

    task_id: str
    outcomes: list[Outcome]  # newest first, in the window of the success rate
    last_number: int | None  # of the newest group that attempts it; None: never planned


def published_rollouts(rate: float, *, n_max: int, n_min: int, threshold: float) -> int:
    """The published rule: n_max below the threshold, else max(n_min, int(9 / rate - 7)), at most
    n_max. Source: dart_rollouter, src/core/task_loader.py (paper arXiv 2509.23866).

    >>> [published_rollouts(r, n_max=8, n_min=1, threshold=0.6) for r in (0.5, 0.6, 0.7, 0.8, 1.0)]
    [8, 8, 5, 4, 2]
    """
    if rate < threshold or rate <= 0:
        return n_max
    return min(n_max, max(n_min, int(9 / rate - 7)))


def beta_rollouts(
    posteriors: Mapping[str, Posterior], *, n_min: int, n_max: int, target: float, budget: float
) -> dict[str, int]:
    """Attempts per task: the most groups with both outcomes that a mean of ``budget`` attempts buys.

    All start at ``n_min``; the next attempt goes to the task whose chance of both outcomes it raises
    most, until that chance reaches ``target`` or the task has ``n_max``. The chance is concave in
    n, so this greedy order is optimal. A new or drifted task has a wide posterior, and so a high
    gain; a task that always or never succeeds has none, and keeps what it has.
    """
    sizes = dict.fromkeys(posteriors, n_min)
    left = int(budget * len(sizes)) - n_min * len(sizes)
    heap: list[tuple[float, str]] = []

    def offer(task_id: str) -> None:
        n, chance = sizes[task_id], posteriors[task_id].both_outcomes
        if n < n_max and chance(n) < target:
            heapq.heappush(heap, (chance(n) - chance(n + 1), task_id))

    for task_id in sizes:
        offer(task_id)
    while heap and left > 0:
        _, task_id = heapq.heappop(heap)
        sizes[task_id] += 1
        left -= 1
        offer(task_id)
    return sizes


def step_limit(
    outcomes: Sequence[Outcome], *, quantile: float, slack: int, floor: int, ceiling: int
) -> int:
    """Model calls that an episode may take: the quantile of the lengths of past successes + slack.

    Where successes press against the limit that they ran under, it is raised by the slack, since
    the lengths that it cut off are not in the quantile. With too few successes it is the ceiling.
    """
    successes = [outcome for outcome in outcomes if outcome.success]
    if len(successes) < MIN_SUCCESSES:
        return ceiling
    lengths = sorted(outcome.num_steps for outcome in successes)
    limit = lengths[max(0, math.ceil(quantile * len(lengths)) - 1)] + slack
    pressing = [o.max_steps for o in successes if o.num_steps >= o.max_steps]
    if len(pressing) > PRESSING_SHARE * len(successes):
        limit = max(limit, max(pressing) + slack)
    return max(min(floor, ceiling), min(limit, ceiling))


def is_probe(number: int, *, seed: int) -> bool:
    """Whether the group of this number runs under the ceiling: where a limit cuts all the longer
    successes, nothing would press against it any more."""
    return stable_hash("probe", seed, number) % PROBE_SHARE == 0


def signal(past: TaskPast, size: int, default_s: float) -> float:
    """Expected learning signal per second of environment time: the chance that the group has both
    outcomes, over the environment seconds that its attempts take."""
    seconds = [outcome.env_s for outcome in past.outcomes]
    mean_s = sum(seconds) / len(seconds) if seconds else default_s
    return posterior(past.outcomes).both_outcomes(size) / (size * max(mean_s, 1e-3))


def shares(
    pasts: Sequence[TaskPast], sizes: Mapping[str, int], *, floor: float
) -> dict[str, float]:
    """Share of the next groups for each task; they add up to 1, and none is below floor / tasks."""
    known = [o.env_s for past in pasts for o in past.outcomes]
    default_s = sum(known) / len(known) if known else 1.0
    signals = {past.task_id: signal(past, sizes[past.task_id], default_s) for past in pasts}
    total = sum(signals.values())
    return {
        task_id: floor / len(pasts) + (1 - floor) * value / total
        for task_id, value in signals.items()
    }


def next_task(
    number: int, pasts: Sequence[TaskPast], sizes: Mapping[str, int], *, floor: float, seed: int
) -> str:
    """The task of the group with this number: drawn by :func:`shares`, but a task that has waited
    for more than tasks / floor groups comes first, so that none is forgotten."""
    patience = len(pasts) / floor
    waits = {
        past.task_id: number if past.last_number is None else number - past.last_number - 1
        for past in pasts
    }
    longest = max(waits, key=lambda task_id: (waits[task_id], task_id))
    if waits[longest] >= patience:
        return longest
    weights = shares(pasts, sizes, floor=floor)
    names = sorted(weights)
    draw = random.Random(stable_hash("next-task", seed, number))
    return draw.choices(names, [weights[name] for name in names])[0]
