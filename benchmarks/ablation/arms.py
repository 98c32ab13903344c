"""The arms: which parts are on. Each level is a set of overrides; an arm is a set of levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Overrides = Mapping[str, str]

TASK_ON: Overrides = {
    "curation.rollout_rule": "beta",
    "curation.step_limit": "dynamic",
    "curation.task_order": "signal",
}
TRAJECTORY_ON: Overrides = {
    "curation.skip_zero_variance": "true",
    "curation.pool": "{pool}",
    "curation.pool_online": "true",
}
TRAJECTORY_OFF: Overrides = {"curation.skip_zero_variance": "false"}
STEP_ON: Overrides = {"curation.entropy_share": "0.8"}
TOKEN_ON: Overrides = {"train.tis_cap": "2.0", "train.token_band": "[0.5, 2.0]"}
TOKEN_OFF: Overrides = {"train.tis_cap": "0"}

LEVELS: Mapping[str, tuple[Overrides, Overrides]] = {
    # level: (on, off)
    "task": (TASK_ON, {}),
    "trajectory": (TRAJECTORY_ON, TRAJECTORY_OFF),
    "step": (STEP_ON, {}),
    "token": (TOKEN_ON, TOKEN_OFF),
}
COUPLED: Overrides = {"data.max_staleness": "0"}
"""Environments wait for the trainer and the trainer for them: a batch is sampled and trained at one
policy version."""


@dataclass(frozen=True, slots=True)
class Arm:
    name: str
    overrides: dict[str, str]


def _arm(name: str, on: set[str], extra: Overrides | None = None) -> Arm:
    overrides: dict[str, str] = {}
    for level, (if_on, if_off) in LEVELS.items():
        overrides |= if_on if level in on else if_off
    return Arm(name, overrides | dict(extra or {}))


ALL = set(LEVELS)
ARMS: tuple[Arm, ...] = (
    _arm("none", set()),
    _arm("all", ALL),
    *(_arm(f"all-but-{level}", ALL - {level}) for level in LEVELS),
    _arm("all-coupled", ALL, COUPLED),
)
