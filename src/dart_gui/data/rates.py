"""What the past of a task says about its success: a window, and a Beta posterior over it.

Pure functions over :class:`Outcome` rows, newest first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

DRIFT_MIN_HALF = 8  # episodes on each side of the comparison
DRIFT_Z = 2.5  # standard errors between the halves that count as a change of the rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One stored trajectory, as the task level sees it."""

    success: bool
    reward: float
    num_steps: int
    max_steps: int  # the limit that it ran under
    version: int  # policy version of its oldest step
    env_s: float


@dataclass(frozen=True, slots=True)
class Posterior:
    """Beta(a, b) over a success rate."""

    a: float
    b: float

    @property
    def mean(self) -> float:
        return self.a / (self.a + self.b)

    def both_outcomes(self, n: int) -> float:
        """Chance that n attempts have a success and a failure: 1 - E[p^n] - E[(1-p)^n].

        E[p^n] of Beta(a, b) is the product over i < n of (a + i) / (a + b + i). It grows with n, by
        less each time: E[p^n (1-p)] + E[(1-p)^n p].
        """
        total = self.a + self.b
        all_good = math.prod((self.a + i) / (total + i) for i in range(n))
        all_bad = math.prod((self.b + i) / (total + i) for i in range(n))
        return 1.0 - all_good - all_bad


def window(
    outcomes: Sequence[Outcome], *, latest_version: int, window_versions: int, min_window: int
) -> list[Outcome]:
    """The outcomes of the last ``window_versions`` policy versions, but at least ``min_window`` of
    them where there are as many (a rate over fewer is noise)."""
    return [
        outcome
        for index, outcome in enumerate(outcomes)
        if index < min_window or outcome.version > latest_version - window_versions
    ]


def success_rate(outcomes: Sequence[Outcome]) -> float:
    """Mean reward, as the published system has it; 0 where there is none."""
    return sum(outcome.reward for outcome in outcomes) / len(outcomes) if outcomes else 0.0


def drifted(outcomes: Sequence[Outcome]) -> bool:
    """Whether the newer half succeeds at another rate than the older one (two-sample z test)."""
    half = len(outcomes) // 2
    if half < DRIFT_MIN_HALF:
        return False
    new, old = outcomes[:half], outcomes[half:]
    pooled = sum(outcome.success for outcome in outcomes) / len(outcomes)
    error = math.sqrt(pooled * (1 - pooled) * (1 / len(new) + 1 / len(old)))
    return error > 0 and abs(_share(new) - _share(old)) > DRIFT_Z * error


def posterior(outcomes: Sequence[Outcome]) -> Posterior:
    """Beta(1 + successes, 1 + failures). After a drift the older half is forgotten, which widens
    the posterior: the task is explored again. Without outcomes it is uniform."""
    counted = outcomes[: len(outcomes) // 2] if drifted(outcomes) else outcomes
    successes = sum(outcome.success for outcome in counted)
    return Posterior(1.0 + successes, 1.0 + len(counted) - successes)


def _share(outcomes: Sequence[Outcome]) -> float:
    return sum(outcome.success for outcome in outcomes) / len(outcomes)
