"""Which stored success a group borrows in which all failed.

A group borrows at most once, when it closes; who lent is recorded with it, so that a batch that comes
back to the queue is the same batch again. Every function works within the transaction of ``conn``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from dart_gui.data.pool import Conditions, ExperiencePool, expired
from dart_gui.data.schema import pool_use, task_group, trajectory

MAX_OWN = 64  # newest own successes of a task that are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Borrowed:
    """A success that another policy, or an older version of this one, made."""

    source: Literal["pool", "run"]
    entry_id: str  # of the pool, or the trajectory id in this run
    blob_sha256: str
    reward: float
    num_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    borrowed: Borrowed
    seed: int


def choose(
    candidates: Sequence[Candidate], uses: Counter[str], *, seed: int, match: str
) -> Borrowed | None:
    """The success for a group with this seed: of the same seed where there is one (with
    ``"instance"`` none else), then the one used least, then the newest, which stands last."""
    ranked = [
        (candidate.seed == seed, -uses[candidate.borrowed.entry_id], place, candidate)
        for place, candidate in enumerate(candidates)
        if candidate.seed == seed or match == "task"
    ]
    return max(ranked, key=lambda item: item[:3])[3].borrowed if ranked else None


@dataclass(frozen=True, kw_only=True)
class Lender:
    """Finds successes for groups of one run. ``conditions`` are those of the run."""

    run_id: str
    conditions: Conditions
    pool: ExperiencePool | None
    online: bool
    match: Literal["task", "instance"]

    def find(self, conn: sa.Connection, group_id: str) -> Borrowed | None:
        g, u = task_group.c, pool_use.c
        row = conn.execute(
            sa.select(g.task_id, g.seed).where(g.run_id == self.run_id, g.group_id == group_id)
        ).one()
        candidates = [*self._of_pool(row.task_id), *self._own(conn, row.task_id)]
        used = conn.execute(
            sa.select(u.entry_id, sa.func.count())
            .where(u.run_id == self.run_id)
            .where(u.entry_id.in_([c.borrowed.entry_id for c in candidates]))
            .group_by(u.entry_id)
        )
        uses = Counter({entry_id: number for entry_id, number in used})
        return choose(candidates, uses, seed=row.seed, match=self.match)

    def _of_pool(self, task_id: str) -> list[Candidate]:
        if self.pool is None:
            return []
        return [
            Candidate(
                borrowed=Borrowed(
                    source="pool",
                    entry_id=entry.entry_id,
                    blob_sha256=entry.blob_sha256,
                    reward=entry.reward,
                    num_steps=entry.num_steps,
                ),
                seed=entry.seed,
            )
            for entry in self.pool.entries()
            if entry.task_id == task_id and expired(entry, self.conditions) is None
        ]

    def _own(self, conn: sa.Connection, task_id: str) -> list[Candidate]:
        if not self.online:
            return []
        t = trajectory.c
        rows = conn.execute(
            sa.select(t.trajectory_id, t.blob_sha256, t.reward, t.num_steps, t.seed)
            .where(t.run_id == self.run_id, t.task_id == task_id, t.success)
            .where(t.env_version == self.conditions.env_version)
            .order_by(t.id.desc())
            .limit(MAX_OWN)
        ).all()
        return [
            Candidate(
                borrowed=Borrowed(
                    source="run",
                    entry_id=row.trajectory_id,
                    blob_sha256=row.blob_sha256,
                    reward=row.reward,
                    num_steps=row.num_steps,
                ),
                seed=row.seed,
            )
            for row in reversed(rows)
        ]


def record(
    conn: sa.Connection, run_id: str, group_id: str, borrowed: Borrowed, *, now: float
) -> None:
    values: dict[str, Any] = {
        "source": borrowed.source,
        "entry_id": borrowed.entry_id,
        "blob_sha256": borrowed.blob_sha256,
        "reward": borrowed.reward,
        "num_steps": borrowed.num_steps,
    }
    conn.execute(
        sa.insert(pool_use).values(run_id=run_id, group_id=group_id, used_at=now, **values)
    )


def of_group(conn: sa.Connection, run_id: str, group_id: str) -> Borrowed | None:
    u = pool_use.c
    columns = (u.source, u.entry_id, u.blob_sha256, u.reward, u.num_steps)
    query = sa.select(*columns).where(u.run_id == run_id, u.group_id == group_id)
    row = conn.execute(query).one_or_none()
    return None if row is None else Borrowed(**row._mapping)
