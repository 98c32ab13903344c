"""The audit of a run: its ledger against itself, and its blobs against the ledger. Reads only.

The rows are read in one transaction, so they are of one moment and a run that goes on does not
disturb the audit; the rules are pure functions over them (:mod:`dart_gui.data.audit_rules`). Blobs
are read after it: what a row names was written before the row and is never changed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dart_gui.config import Config
from dart_gui.data import schema
from dart_gui.data.audit_rules import BACKUP, DEFECT, Finding, Limits, Snapshot, check_rows
from dart_gui.data.blobs import BlobStore
from dart_gui.data.ledger import Ledger
from dart_gui.data.staleness import Pacing
from dart_gui.errors import DataError
from dart_gui.types import Trajectory

__all__ = ["Audit", "Finding", "Snapshot"]


class Audit:
    """An audit of the run in ``run_dir``, whose ledger and blobs are where ``config`` says.

    Raises:
        DataError: there is no ledger, it cannot be read, or it does not know the run.
    """

    def __init__(self, run_dir: Path, config: Config) -> None:
        url = config.data.ledger or f"sqlite:///{(run_dir / 'ledger.sqlite').absolute()}"
        self._ledger = Ledger(url, run_id=run_dir.name, clock=time.time, read_only=True)
        self._blobs = BlobStore(config.data.blobs or str((run_dir / "blobs").absolute()))
        self._limits = Limits(
            max_uses=config.data.max_uses,
            pacing=Pacing(
                max_staleness=config.data.max_staleness,
                groups_per_step=config.train.groups_per_step,
            ),
        )

    def close(self) -> None:
        self._ledger.close()

    def snapshot(self) -> Snapshot:
        """All rows of the run, as they are now."""
        with self._ledger.reading() as conn:
            rows = {table: self._rows(conn, table) for table in _TABLES}
        return Snapshot(
            run_id=self._ledger.run_id,
            groups={row.group_id: row for row in rows[schema.task_group]},
            episodes={row.episode_id: row for row in rows[schema.episode]},
            failures=rows[schema.episode_failure],
            trajectories={row.trajectory_id: row for row in rows[schema.trajectory]},
            batches={row.id: row for row in rows[schema.train_batch]},
            versions={row.version: row for row in rows[schema.policy_version]},
            checkpoints=sorted(rows[schema.durable_checkpoint], key=lambda row: row.train_step),
            rollouts=rows[schema.rollout_run],
            published=rows[schema.checkpoint],
        )

    def check_ledger(self, rows: Snapshot) -> Iterator[Finding]:
        """What is wrong with the rows, by themselves."""
        yield from check_rows(rows, self._limits)

    def check_blobs(self, rows: Snapshot, *, fast: bool = False) -> Iterator[Finding]:
        """What is wrong with the blobs that the rows name; ``fast`` looks only whether the
        trajectories are there, and reads none of them."""
        images: dict[str, str] = {}  # sha256 -> the first trajectory that names it
        for row in rows.trajectories.values():
            if fast:
                yield from self._look_for(row)
                continue
            try:
                trajectory = self._blobs.trajectory(row.trajectory_id, row.blob_sha256)
            except DataError as error:
                yield Finding(f"trajectory {row.trajectory_id}: {error}")
                continue
            yield from _compare(row, trajectory)
            for step in trajectory.steps:
                for sha256 in step.completion.image_hashes:
                    images.setdefault(sha256, row.trajectory_id)
        for sha256, trajectory_id in images.items():
            try:
                self._blobs.image(sha256)
            except DataError as error:
                yield Finding(f"a screenshot of trajectory {trajectory_id}: {error}")

    def _look_for(self, row: Any) -> Iterator[Finding]:
        if not self._blobs.has_trajectory(row.trajectory_id):
            path = self._blobs.trajectory_path(row.trajectory_id)
            yield Finding(f"trajectory {row.trajectory_id}: its blob {path} is missing. {BACKUP}")

    def _rows(self, conn: sa.Connection, table: sa.Table) -> list[Any]:
        of_run = table.c.run_id == self._ledger.run_id
        return list(conn.execute(sa.select(table).where(of_run)))


_TABLES = (
    schema.task_group,
    schema.episode,
    schema.episode_failure,
    schema.trajectory,
    schema.train_batch,
    schema.policy_version,
    schema.durable_checkpoint,
    schema.rollout_run,
    schema.checkpoint,
)


def _compare(row: Any, trajectory: Trajectory) -> Iterator[Finding]:
    """The row's facts against the blob's. (That a step has as many log-probabilities as tokens is
    checked where it is decoded.)"""
    facts = {
        "trajectory_id": trajectory.trajectory_id,
        "run_id": trajectory.run_id,
        "group_id": trajectory.group_id,
        "task_id": trajectory.task.task_id,
        "seed": trajectory.task.seed,
        "attempt": trajectory.attempt,
        "stop_reason": trajectory.stop_reason.value,
        "success": trajectory.success,
        "reward": trajectory.reward,
        "num_steps": len(trajectory.steps),
        "num_response_tokens": sum(len(s.completion.response_ids) for s in trajectory.steps),
        "version_min": trajectory.version_min,
        "version_max": trajectory.version_max,
    }
    for name, value in facts.items():
        if row._mapping[name] != value:
            yield Finding(
                f"trajectory {row.trajectory_id}: {name} is {row._mapping[name]} in the ledger "
                f"and {value} in its blob. {DEFECT}"
            )
    for step in trajectory.steps:
        if not step.completion.response_ids:
            yield Finding(
                f"trajectory {row.trajectory_id}: step {step.index} has an empty response, which "
                f"cannot be trained. {DEFECT}"
            )
