"""Group-relative advantages (GRPO) and the weight of each step's loss. Pure functions.

Sources: GRPO (arXiv 2402.03300) normalises by the group's standard deviation; Dr. GRPO (2503.20783)
does not; DART (2509.23866) takes the statistics over all steps of the group's trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

EPSILON = 1e-6

Statistics = Literal["trajectory", "step"]


def advantages(
    rewards: Sequence[float],
    num_steps: Sequence[int],
    *,
    statistics: Statistics = "trajectory",
    normalize_std: bool = True,
) -> list[float]:
    """``(R_i - mean) / (std + 1e-6)`` of each trajectory of a group; each of its steps takes it.

    ``rewards`` and ``num_steps`` have one entry per trajectory. With ``"trajectory"`` each
    trajectory counts once; with ``"step"`` it counts once per step, so long trajectories weigh
    more. The standard deviation is the unbiased one (divisor n - 1), as DART has it.
    ``normalize_std=False`` leaves ``R_i - mean``. A group of one has nothing to be compared with:
    its advantage is 0.
    """
    r = np.asarray(rewards, dtype=np.float64)
    if r.size < 2:
        return [0.0] * int(r.size)
    counts = np.asarray(num_steps, dtype=np.float64) if statistics == "step" else np.ones_like(r)
    total = counts.sum()
    centred = r - (counts * r).sum() / total
    if not normalize_std:
        return [float(a) for a in centred]
    std = np.sqrt((counts * centred**2).sum() / (total - 1))
    return [float(a) for a in centred / (std + EPSILON)]


def step_weights(num_steps: Sequence[int], *, statistics: Statistics = "trajectory") -> list[float]:
    """Weight of the loss of each step of each trajectory.

    ``"trajectory"``: 1/T for a trajectory of T steps, so that every trajectory weighs the same.
    ``"step"``: 1, so that every step weighs the same, as in the paper.
    """
    if statistics == "step":
        return [1.0] * len(num_steps)
    return [1.0 / n for n in num_steps]


def share_factor(*, own: float, foreign: float, share: float) -> float:
    """What the weight of borrowed successes is multiplied by, so that they have at most ``share`` of
    all weight: f with f * foreign <= share * (own + f * foreign), at most 1.

    >>> share_factor(own=9.0, foreign=9.0, share=0.25)
    0.3333333333333333
    """
    if foreign <= 0 or share >= 1 or foreign <= share * (own + foreign):
        return 1.0
    return share * own / ((1 - share) * foreign)
