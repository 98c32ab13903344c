"""Curation: pure stages that decide, when a group closes, whether it is worth training.

A stage sees the facts of the group's stored members and gives a reason to skip the group, or None.
Infrastructure failures have no facts, so they leave the statistics alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dart_gui.config import CurationConfig

VARIANCE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberFacts:
    """What curation may know of one stored trajectory."""

    trajectory_id: str
    reward: float
    success: bool
    num_steps: int


Stage = Callable[[Sequence[MemberFacts]], str | None]


def skip_zero_variance(members: Sequence[MemberFacts]) -> str | None:
    """Equal rewards give zero advantages: nothing to learn."""
    rewards = [member.reward for member in members]
    return "zero_variance" if max(rewards) - min(rewards) <= VARIANCE_TOLERANCE else None


def stages(config: CurationConfig) -> list[Stage]:
    """The stages that the configuration switches on, in the order in which they apply."""
    return [skip_zero_variance] if config.skip_zero_variance else []


def reason_to_skip(members: Sequence[MemberFacts], active: Sequence[Stage]) -> str | None:
    """The reason of the first stage that refuses the group; None where all accept it."""
    return next((reason for stage in active if (reason := stage(members))), None)
