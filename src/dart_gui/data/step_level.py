"""The step level of the curation: which steps of a group are trained. Pure functions.

Source: arXiv 2509.23866, which trains the 80 % of a group's steps that have the highest entropy: where
the policy hesitates there is something to decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dart_gui.types import Step


def step_entropy(step: Step) -> float:
    """Mean over the response tokens of the entropy that the engine measured when it sampled them,
    in nats; 0 for an empty response."""
    entropies = step.completion.entropies
    return sum(entropies) / len(entropies) if entropies else 0.0


def select_steps(entropies: Sequence[Sequence[float]], share: float) -> list[list[bool]]:
    """Which steps are among the ``share`` of highest entropy over all trajectories of a group.

    ``entropies`` holds a list of steps for each trajectory. ceil(share * steps) of them are
    selected; among equals the earlier trajectory and the earlier step come first.

    >>> select_steps([[0.1, 0.9], [0.5]], 0.6)
    [[False, True], [True]]
    """
    places = [(i, j) for i, steps in enumerate(entropies) for j in range(len(steps))]
    ranked = sorted(places, key=lambda place: -entropies[place[0]][place[1]])
    # The product of a decimal share may fall just above the integer that is meant.
    chosen = set(ranked[: math.ceil(share * len(places) - 1e-9)])
    return [[(i, j) in chosen for j in range(len(steps))] for i, steps in enumerate(entropies)]
