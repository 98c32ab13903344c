"""What a claim takes out of the ledger: rows of groups and their trajectories, without blobs."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from dart_gui.data import groups, pool_use, staleness
from dart_gui.data.groups import Rung
from dart_gui.data.pool_use import Borrowed
from dart_gui.data.schema import task_group, trajectory
from dart_gui.data.staleness import Pacing
from dart_gui.types import StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedTrajectory:
    trajectory_id: str
    blob_sha256: str
    reward: float
    num_steps: int
    staleness: int  # in train steps
    cut: bool  # failed at a dynamic step limit, below the run's own


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedGroup:
    group_id: str
    task_id: str
    trajectories: list[ClaimedTrajectory]
    borrowed: Borrowed | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    batch_id: int
    trainer_version: int
    groups: list[ClaimedGroup]
    staleness_mean: float
    staleness_max: int


def read_group(
    conn: sa.Connection, run_id: str, rung: Rung, *, version: int, train_step: int, pacing: Pacing
) -> ClaimedGroup:
    """The group at ``rung``, consumed at ``version`` for ``train_step``.

    Raises:
        DataError: it is older than ``pacing`` allows.
    """
    g, t = task_group.c, trajectory.c
    of_group = (g.run_id == run_id, g.group_id == rung.group_id)
    row = conn.execute(sa.select(g.task_id, g.version_shift, g.max_steps).where(*of_group)).one()
    columns = (t.trajectory_id, t.blob_sha256, t.reward, t.num_steps, t.version_min)
    members = conn.execute(
        sa.select(*columns, t.stop_reason, t.success)
        .where(t.run_id == run_id, t.group_id == rung.group_id)
        .order_by(t.episode_id)
    ).all()
    oldest = min(member.version_min for member in members)
    staleness.check_consumed(
        rung.group_id,
        ladder=rung.version,
        oldest=oldest + row.version_shift,
        version=version,
        pacing=pacing,
    )
    steps = groups.train_steps(conn, run_id, since=oldest)
    return ClaimedGroup(
        group_id=rung.group_id,
        task_id=row.task_id,
        trajectories=[
            ClaimedTrajectory(
                trajectory_id=member.trajectory_id,
                blob_sha256=member.blob_sha256,
                reward=member.reward,
                num_steps=member.num_steps,
                staleness=staleness.distance(steps, member.version_min, train_step - 1),
                cut=row.max_steps is not None
                and member.stop_reason == StopReason.MAX_STEPS
                and not member.success,
            )
            for member in members
        ],
        borrowed=pool_use.of_group(conn, run_id, rung.group_id),
    )
