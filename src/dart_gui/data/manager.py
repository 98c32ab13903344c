"""The data manager: one facade over ledger, blobs, sampler and curation.

It is a library, not a process: the runner plans and stores, the trainer claims and acknowledges, at
the same time and in processes of their own, over one ledger. It keeps no state between calls that
the ledger does not have, so any of them may be killed and started again.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType

from dart_gui.config import Config, CurationConfig, DataConfig, RunnerConfig
from dart_gui.data import curation, stats
from dart_gui.data.batches import BatchBook
from dart_gui.data.blobs import BlobStore, encode_trajectory
from dart_gui.data.episodes import EpisodeBook
from dart_gui.data.ledger import Ledger
from dart_gui.data.loading import BatchLoader
from dart_gui.data.planner import Planner
from dart_gui.data.pool import Conditions, ExperiencePool
from dart_gui.data.pool_use import Lender
from dart_gui.data.records import (
    Batch,
    BatchGroup,
    CheckpointRecord,
    TaskStats,
    TrainTrajectory,
    TrajectoryFacts,
)
from dart_gui.data.sampler import Sampler
from dart_gui.data.staleness import Pacing
from dart_gui.errors import ConfigError, DataError
from dart_gui.types import PlannedEpisode, StopReason, Trajectory, WeightsRef

__all__ = [
    "Batch",
    "BatchGroup",
    "CheckpointRecord",
    "DataManager",
    "TaskStats",
    "TrainTrajectory",
    "TrajectoryFacts",
]


class DataManager:
    """The data of one run.

    ``ledger_url`` is an SQLAlchemy URL, ``blobs_url`` a folder or an fsspec URL; both are created
    where missing. Without a ``sampler`` nothing can be planned (trainer, tools). ``max_attempts``
    bounds the tries of one episode, ``max_steps`` the model calls of each. ``clock`` gives Unix
    seconds. ``conditions`` are those of the environments and the agent: without them no success is
    borrowed.

    Raises:
        ConfigError: a URL is unknown, or ``max_uses`` is not 1.
        DataError: the ledger cannot be opened, or a newer version of dart-gui made it.
    """

    def __init__(
        self,
        ledger_url: str,
        blobs_url: str,
        *,
        run_id: str,
        config: DataConfig,
        curation: CurationConfig,
        groups_per_step: int,
        sampler: Sampler | None = None,
        max_attempts: int = 3,
        max_steps: int = RunnerConfig().max_steps,
        conditions: Conditions | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if config.max_uses != 1:
            raise ConfigError(
                f"data.max_uses = {config.max_uses}: a trajectory is trained once; set it to 1"
            )
        pool = ExperiencePool(folder=Path(curation.pool)) if curation.pool else None
        self._pool = pool
        self._ledger = Ledger(ledger_url, run_id=run_id, clock=clock)
        self._blobs = BlobStore(blobs_url)
        pacing = Pacing(max_staleness=config.max_staleness, groups_per_step=groups_per_step)
        planner = (
            None
            if sampler is None
            else Planner(
                run_id=run_id,
                sampler=sampler,
                curation=curation,
                group_size=config.group_size,
                max_steps=max_steps,
            )
        )
        self._episodes = EpisodeBook(
            ledger=self._ledger,
            pacing=pacing,
            stages=_stages(curation),
            planner=planner,
            max_attempts=max_attempts,
            env_version="" if conditions is None else conditions.env_version,
            lender=None if conditions is None else _lender(run_id, conditions, curation, pool),
        )
        self._loader = BatchLoader(blobs=self._blobs, pool=pool, curation=curation)
        self._batches = BatchBook(ledger=self._ledger, pacing=pacing)

    @classmethod
    def open(
        cls,
        run_dir: Path,
        config: Config,
        *,
        sampler: Sampler | None = None,
        conditions: Conditions | None = None,
        clock: Callable[[], float] = time.time,
    ) -> DataManager:
        """The data of the run in ``run_dir``: where its configuration says, else in that folder."""
        return cls(
            config.data.ledger or f"sqlite:///{(run_dir / 'ledger.sqlite').absolute()}",
            config.data.blobs or str((run_dir / "blobs").absolute()),
            run_id=run_dir.name,
            config=config.data,
            curation=config.curation,
            groups_per_step=config.train.groups_per_step,
            sampler=sampler,
            max_attempts=config.runner.max_attempts,
            max_steps=config.runner.max_steps,
            conditions=conditions,
            clock=clock,
        )

    def __enter__(self) -> DataManager:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._ledger.close()

    # --- runner -------------------------------------------------------------------------------

    def recover(self) -> int:
        """Return the episodes of a runner that is gone to the plan; how many there were. To be
        called when a runner starts and when it stops: one runner per run.
        """
        return self._episodes.recover()

    def next_episode(self, served_version: int) -> PlannedEpisode | None:
        """The oldest planned episode, else the first of a new group, else None: wait.

        ``served_version`` is the lowest policy version that any live rollout worker serves.
        """
        return self._episodes.next(served_version)

    def store(self, trajectory: Trajectory, images: Mapping[str, bytes]) -> None:
        """Store an evaluated episode: blobs first, then its rows in one transaction.

        ``images`` maps sha256 to PNG and holds every screenshot that a prompt names, but for those
        that are stored already. Storing the same trajectory again changes nothing.

        Raises:
            DataError: no running attempt owes this trajectory, a screenshot is missing, a number
                is not finite, or ledger or blobs cannot be written.
        """
        _check_finite(trajectory)
        data = encode_trajectory(trajectory)
        sha256 = hashlib.sha256(data).hexdigest()
        if self._episodes.is_stored(trajectory, sha256):
            return
        self._blobs.put_images(images)
        self._blobs.require_images(
            {sha for step in trajectory.steps for sha in step.completion.image_hashes} - set(images)
        )
        self._blobs.put_trajectory(trajectory.trajectory_id, data)
        self._episodes.store(trajectory, sha256)

    def fail(self, episode: PlannedEpisode, reason: StopReason, message: str) -> None:
        """Record a failed attempt; the episode is planned again, or cancelled after the last.

        Raises:
            DataError: this attempt is not running.
        """
        self._episodes.fail(episode, reason, message)

    # --- trainer ------------------------------------------------------------------------------

    def claim_batch(self, train_step: int) -> Batch | None:
        """Claim the oldest ``groups_per_step`` complete groups for this train step (from 1).

        None: there are too few, or the batch has to wait for older groups under way, which would
        otherwise exceed ``max_staleness``.

        Raises:
            DataError: the step is claimed already, another trainer took the run over, the staleness
                bound is broken, or a blob is damaged (then the batch is back in the queue).
        """
        claim = self._batches.claim(train_step)
        if claim is None:
            return None
        try:
            return self._loader.load(train_step, claim)
        except DataError:
            self._batches.give_back(claim.batch_id)
            raise

    def publish_version(self, train_step: int, path: str) -> WeightsRef:
        """Give weights the next policy version: 0 for the initial model, never one twice.

        Raises:
            DataError: the path is longer than 255, or another trainer took the run over.
        """
        return self._batches.publish(train_step, path)

    def acknowledge(
        self, train_step: int, checkpoint_path: str, policy_version: int | None = None
    ) -> int:
        """Record the durable checkpoint of ``train_step``: batches up to it are trained for good,
        and ``rollout_run.used`` counts up. Gives the number of batches; 0 when done again.
        ``policy_version`` is that of its weights; by default the one published at this step.

        Raises:
            DataError: another trainer took the run over.
        """
        return self._batches.acknowledge(train_step, checkpoint_path, policy_version)

    def resume_from(self, train_step: int) -> int:
        """Take the run over at the checkpoint of ``train_step``, or at 0 without one. Batches
        claimed after it return to the queue; the number of their groups. To be called when a
        trainer starts, before it publishes the weights that it starts from.
        """
        return self._batches.resume_from(train_step)

    def latest_checkpoint(self) -> CheckpointRecord | None:
        return self._batches.latest_checkpoint()

    def latest_version(self) -> int | None:
        """The latest published policy version; None before the first."""
        return self._batches.latest_version()

    def latest_weights(self) -> WeightsRef | None:
        """The latest published weights; None before the first."""
        return self._batches.weights()

    def weights(self, policy_version: int) -> WeightsRef | None:
        """The weights that were published under this version; None where there are none."""
        return self._batches.weights(policy_version)

    # --- tools --------------------------------------------------------------------------------

    def load_trajectory(self, trajectory_id: str) -> Trajectory:
        """Raises ``DataError`` where it is not stored, or damaged."""
        sha256 = self._episodes.stored_sha256(trajectory_id)
        if sha256 is None:
            raise DataError(
                f"run {self._ledger.run_id} has no trajectory {trajectory_id!r} in its ledger"
            )
        return self._blobs.trajectory(trajectory_id, sha256)

    def load_image(self, sha256: str) -> bytes:
        """The PNG of a screenshot, of this run or of its pool. Raises ``DataError`` where it is
        missing or damaged."""
        if self._pool is not None and not self._blobs.has_image(sha256):
            return self._pool.blobs.image(sha256)
        return self._blobs.image(sha256)

    def load_images(self, hashes: Iterable[str]) -> dict[str, bytes]:
        return {sha256: self.load_image(sha256) for sha256 in hashes}

    def trajectories(
        self,
        *,
        task_id: str | None = None,
        group_id: str | None = None,
        success: bool | None = None,
        after_id: int = 0,
        limit: int | None = None,
    ) -> list[TrajectoryFacts]:
        """Facts of stored trajectories in the order of storing, without their steps."""
        return stats.trajectories(
            self._ledger,
            task_id=task_id,
            group_id=group_id,
            success=success,
            after_id=after_id,
            limit=limit,
        )

    def counts(self) -> stats.Counts:
        """Groups, episodes and batches by state; failures, skipped and cancelled by reason;
        ``in_system`` groups and the ``trainer_version`` that admission counts from.
        """
        return stats.counts(self._ledger)

    def task_stats(self, last: int = 100) -> dict[str, TaskStats]:
        """Success per task_id over its ``last`` newest trajectories."""
        return stats.task_stats(self._ledger, last=last)

    def task_flow(self) -> dict[str, dict[str, dict[str, float]]]:
        """Per task_id and fate of the group (``skipped``, ``waiting``, ``trained``), the number and the
        mean length of its trajectories: whether what is trained is like what was dispatched.
        """
        return stats.task_flow(self._ledger)


def _check_finite(trajectory: Trajectory) -> None:
    for step in trajectory.steps:
        numbers = (*step.completion.rollout_logprobs, *step.completion.entropies)
        if not all(map(math.isfinite, numbers)):
            raise DataError(
                f"step {step.index} of trajectory {trajectory.trajectory_id} has a log-probability "
                "or an entropy that is not finite"
            )


def _lender(
    run_id: str, conditions: Conditions, curation: CurationConfig, pool: ExperiencePool | None
) -> Lender | None:
    if pool is None and not curation.pool_online:
        return None
    return Lender(
        run_id=run_id,
        conditions=conditions,
        pool=pool,
        online=curation.pool_online,
        match=curation.pool_match,
    )


def _stages(config: CurationConfig) -> list[curation.Stage]:
    return curation.stages(config)
