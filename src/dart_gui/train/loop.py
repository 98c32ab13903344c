"""The trainer's loop: claim -> train -> publish -> (now and then) checkpoint and acknowledge.

    consumes     curated groups that are complete, from the ledger
    waits for    a batch that keeps the staleness bound (the ladder of ``data.staleness``)
    produces     weights folders, policy versions, checkpoints
    unblocked by the runner, which stores trajectories; the two never speak to each other

A batch counts as trained once a durable checkpoint lists it: after a crash, the batches behind the
newest checkpoint go back to the queue.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from dart_gui.config import Config
from dart_gui.data.manager import DataManager
from dart_gui.data.records import Batch
from dart_gui.metrics import MetricsWriter
from dart_gui.train.checkpoint import (
    TrainerState,
    discard_partial,
    load_checkpoint,
    prune,
    save_checkpoint,
    save_model,
)
from dart_gui.train.trainer import Trainer
from dart_gui.types import WeightsRef

log = logging.getLogger(__name__)

IDLE_TICK_S = 0.05


class Publisher(Protocol):
    """Tells the rollout service which weights to serve."""

    def publish(self, weights: WeightsRef) -> None:
        """Announce new weights; a service that cannot be reached is told again by ``refresh``."""

    def refresh(self) -> None:
        """Announce the newest weights again, if the service has not heard of them."""


class TrainLoop:
    """Runs until a limit of ``config.run`` is reached or ``stop`` is called."""

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        trainer: Trainer,
        data: DataManager,
        publisher: Publisher,
        metrics: MetricsWriter,
        *,
        monotonic: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._run_dir = run_dir
        self._config = config
        self._trainer = trainer
        self._data = data
        self._publisher = publisher
        self._metrics = metrics
        self._monotonic = monotonic
        self._sleep = sleep
        self._stopping = False
        self.train_step = 0
        self._elapsed_before_s = 0.0
        self._started = monotonic()
        self._checkpointed_at = -1

    def stop(self) -> None:
        """End after the train step in hand; a checkpoint is written. Safe in a signal handler."""
        self._stopping = True

    @property
    def elapsed_s(self) -> float:
        return self._elapsed_before_s + self._monotonic() - self._started

    @property
    def finished(self) -> bool:
        """True once a limit of the configuration is reached."""
        run = self._config.run
        steps_done = 0 < run.max_train_steps <= self.train_step
        return steps_done or self.elapsed_s >= run.max_time_s

    @property
    def progress(self) -> float:
        """Share of the run that is over, 0 to 1, by whichever limit is nearer."""
        run = self._config.run
        steps = self.train_step / run.max_train_steps if run.max_train_steps else 0.0
        return min(1.0, max(steps, self.elapsed_s / run.max_time_s))

    def restore(self) -> None:
        """Start from the newest durable checkpoint, or from the initial model as version 0."""
        for folder in ("weights", "checkpoints"):
            discard_partial(self._run_dir / folder)
        found = self._data.latest_checkpoint()
        if found is None:
            returned = self._data.resume_from(0)
            path = str(Path(self._config.model.path).resolve())
        else:
            state = load_checkpoint(self._trainer, Path(found.path))
            self.train_step = self._checkpointed_at = state.train_step
            self._elapsed_before_s = state.elapsed_s
            returned = self._data.resume_from(state.train_step)
            path = found.path
        self._publisher.publish(self._data.publish_version(self.train_step, path))
        self._started = self._monotonic()
        self._metrics.log("trainer_start", train_step=self.train_step, num_requeued_groups=returned)
        log.info("at train step %d, %d groups back in the queue", self.train_step, returned)

    def run(self) -> None:
        waiting_since = self._monotonic()
        while not (self._stopping or self.finished):
            batch = self._data.claim_batch(self.train_step + 1)
            if batch is None:
                self._publisher.refresh()
                self._sleep(IDLE_TICK_S)
                continue
            self._metrics.log("batch_claimed", train_step=batch.train_step)
            self._train(batch, wait_s=self._monotonic() - waiting_since)
            waiting_since = self._monotonic()
        self._checkpoint()

    def _train(self, batch: Batch, *, wait_s: float) -> None:
        measured = self._trainer.step(batch, progress=self.progress)
        self.train_step = batch.train_step
        save_started = self._monotonic()
        folder = self._run_dir / "weights" / f"v{self._next_version():06d}"
        save_model(self._trainer.policy, folder)
        weights = self._data.publish_version(self.train_step, str(folder.resolve()))
        self._publisher.publish(weights)
        if self.train_step % self._config.train.checkpoint_every == 0:
            self._checkpoint()
        save_s = self._monotonic() - save_started
        prune(sorted(folder.parent.glob("v*")), self._config.train.keep_weights)
        self._report(batch, measured, weights, wait_s=wait_s, save_s=save_s)

    def _next_version(self) -> int:
        """Folders are named by it, never by the train step: a step that is trained again after a
        crash makes other weights, and a version must not change its content."""
        latest = self._data.latest_version()
        return 0 if latest is None else latest + 1

    def _checkpoint(self) -> None:
        if self._checkpointed_at == self.train_step:
            return
        folder = (self._run_dir / "checkpoints" / f"step-{self.train_step:06d}").resolve()
        state = TrainerState(
            train_step=self.train_step,
            num_updates=self._trainer.num_updates,
            elapsed_s=self.elapsed_s,
        )
        save_checkpoint(self._trainer, state, folder)
        self._data.acknowledge(self.train_step, str(folder))
        self._checkpointed_at = self.train_step
        self._metrics.log("data_flow", train_step=self.train_step, tasks=self._data.task_flow())
        # A later one that a killed trainer saved and did not acknowledge must not count as kept.
        finished = [each for each in _steps(folder.parent) if each.name <= folder.name]
        prune(finished, self._config.train.keep_checkpoints)
        log.info("checkpoint at train step %d", self.train_step)

    def _report(
        self,
        batch: Batch,
        measured: dict[str, Any],
        weights: WeightsRef,
        *,
        wait_s: float,
        save_s: float,
    ) -> None:
        members = [member.trajectory for member in batch.trajectories if not member.foreign]
        self._metrics.log(
            "train_step",
            train_step=self.train_step,
            policy_version=weights.policy_version,
            **measured,
            staleness_mean=batch.staleness_mean,
            staleness_max=batch.staleness_max,
            num_trajectories=len(members),
            reward_mean=sum(t.reward for t in members) / len(members),
            success_rate=sum(t.success for t in members) / len(members),
            **curation_values(batch),
            wait_s=wait_s,
            save_s=save_s,
            elapsed_s=self.elapsed_s,
        )


def curation_values(batch: Batch) -> dict[str, Any]:
    """What the curation made of a batch, as values of the ``train_step`` event."""
    own = [member for member in batch.trajectories if not member.foreign]
    num_steps = [len(member.trajectory.steps) for member in own]
    num_selected = sum(
        len(member.trajectory.steps) if member.selected is None else sum(member.selected)
        for member in own
    )
    return {
        "num_groups": len(batch.groups),
        "num_borrowed": sum(member.foreign for member in batch.trajectories),
        "borrowed_weight": _weight_share(batch),
        "selected_fraction": num_selected / sum(num_steps),
        "episode_steps": sum(num_steps) / len(own),
        "group_size_mean": len(own) / len(batch.groups),
        "trained_tasks": dict(Counter(member.trajectory.task.task_id for member in own)),
    }


def _weight_share(batch: Batch) -> float:
    """Share of the batch's loss weight that borrowed successes have."""
    weights = {True: 0.0, False: 0.0}
    for member in batch.trajectories:
        weights[member.foreign] += member.weight * len(member.trajectory.steps)
    return weights[True] / (weights[True] + weights[False])


def _steps(folder: Path) -> list[Path]:
    """Finished step folders, oldest first."""
    return sorted(folder.glob("step-*"))
