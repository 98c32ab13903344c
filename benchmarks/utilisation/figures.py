"""Utilisation and where the gain comes from: pure, of the seconds by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.utilisation.meter import IDLE, Part

GOAL = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """One episode of one arm."""

    arm: str
    seconds: Mapping[Part, float]

    @property
    def wall_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def model_s(self) -> float:
        return self.seconds[Part.MODEL]

    @property
    def own_s(self) -> float:
        """What the environment adds to the model's time."""
        return self.wall_s - self.model_s

    def work_s(self, *, settling: bool = True) -> float:
        """Seconds in which the environment works; ``settling`` counts watching the screen, too."""
        idle = IDLE if settling else IDLE | {Part.SETTLE}
        return sum(value for part, value in self.seconds.items() if part not in idle)

    def utilisation(self, *, settling: bool = True) -> float:
        """Share of the whole time that the desktop is held."""
        return self.work_s(settling=settling) / self.wall_s

    def own_utilisation(self, *, settling: bool = True) -> float:
        """Share of the time that is not the model's."""
        return self.work_s(settling=settling) / self.own_s


def shares_of_gain(ours: float, published: float, ablated: Mapping[str, float]) -> dict[str, float]:
    """What each trait of the published way costs alone, as a share of the whole gap in seconds.

    The shares need not sum to 1: traits overlap, as a boot in the episode's path does with nothing,
    but a slow action does with the wait that follows it.

    Raises:
        ValueError: the published way is not slower, so there is no gain to share.
    """
    if published <= ours:
        raise ValueError(f"there is no gain: {published:g} s published, {ours:g} s ours")
    return {name: (value - ours) / (published - ours) for name, value in ablated.items()}


def ceiling(published: Sequence[Played]) -> float:
    """How many times shorter an episode could be whose environment takes no time at all."""
    return sum(each.wall_s for each in published) / sum(each.model_s for each in published)
