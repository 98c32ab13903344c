"""Warm start: imitate the successes of an experience pool before reinforcement learning begins."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from dart_gui.data.records import Batch, BatchGroup, TrainTrajectory
from dart_gui.errors import ConfigError
from dart_gui.train.trainer import Trainer
from dart_gui.types import Trajectory


def imitate(
    trainer: Trainer,
    trajectories: Sequence[Trajectory],
    *,
    num_steps: int,
    batch_size: int,
    seed: int,
    report: Callable[[int, dict[str, Any]], None],
) -> None:
    """``num_steps`` updates on ``batch_size`` trajectories each, drawn task by task so that a task
    weighs the same however many successes it has. ``report`` is told the measurements of each
    update; its ``loss`` is in nats per response token.

    Raises:
        ConfigError: there is nothing to imitate.
    """
    if not trajectories:
        raise ConfigError("there is no success to imitate")
    by_task: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        by_task.setdefault(trajectory.task.task_id, []).append(trajectory)
    rng = random.Random(seed)
    tasks = sorted(by_task)
    for number in range(1, num_steps + 1):
        drawn = [rng.choice(by_task[rng.choice(tasks)]) for _ in range(batch_size)]
        report(number, trainer.step(imitation_batch(drawn, number)))


def imitation_batch(trajectories: Sequence[Trajectory], number: int) -> Batch:
    """All of them foreign and good; every trajectory weighs the same."""
    members = [
        TrainTrajectory(
            trajectory=trajectory,
            advantage=1.0,
            weight=1.0 / len(trajectory.steps),
            staleness=0,
            foreign=True,
        )
        for trajectory in trajectories
    ]
    group = BatchGroup(group_id="pool", task_id="pool", trajectories=members)
    return Batch(
        train_step=number, trainer_version=0, groups=[group], staleness_mean=0.0, staleness_max=0
    )
