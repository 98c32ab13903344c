"""Warm start: imitate the successes of an experience pool before reinforcement learning begins."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dart_gui.config import Config
from dart_gui.data.records import Batch, BatchGroup, TrainTrajectory
from dart_gui.errors import ConfigError
from dart_gui.train.checkpoint import save_model
from dart_gui.train.main import build_trainer
from dart_gui.train.trainer import Trainer
from dart_gui.types import Trajectory

Report = Callable[[int, dict[str, Any]], None]


def warm_start(
    config: Config,
    trajectories: Sequence[Trajectory],
    read_image: Callable[[str], bytes],
    out: Path,
    *,
    num_steps: int,
    batch_size: int,
    report: Report,
) -> None:
    """Imitate ``trajectories`` with the model and the ``[train]`` settings of ``config``; the result
    is a model folder at ``out``. See :func:`imitate`.
    """
    trainer = build_trainer(config, read_image)
    imitate(
        trainer,
        trajectories,
        num_steps=num_steps,
        batch_size=batch_size,
        seed=config.run.seed,
        report=report,
    )
    save_model(trainer.policy, out)


def imitate(
    trainer: Trainer,
    trajectories: Sequence[Trajectory],
    *,
    num_steps: int,
    batch_size: int,
    seed: int,
    report: Report,
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
