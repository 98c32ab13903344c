"""Rows of groups: the ladder of those in the system, their moves, and how a group closes.

Every function works within the write transaction of ``conn``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dart_gui.data import pool_use, staleness
from dart_gui.data.curation import MemberFacts, Stage, reason_to_skip
from dart_gui.data.pool_use import Borrowed, Lender
from dart_gui.data.schema import episode, policy_version, task_group, train_batch, trajectory
from dart_gui.data.staleness import Pacing
from dart_gui.data.states import BatchState, EpisodeState, GroupState, check_move
from dart_gui.errors import DataError

LOST_MEMBERS = "lost_members"
STALE = "stale"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A group in the system, at its place in the ladder."""

    group_id: str
    state: GroupState
    version: int  # ladder version: planned_version + version_shift


def ladder(conn: sa.Connection, run_id: str) -> list[Rung]:
    """The groups in the system, oldest first: by ladder version, then by the order of planning."""
    g = task_group.c
    rows = conn.execute(
        sa.select(g.group_id, g.state, (g.planned_version + g.version_shift).label("version"))
        .where(g.run_id == run_id, g.state.in_([GroupState.OPEN, GroupState.COMPLETE]))
        .order_by("version", g.number)
    )
    return [
        Rung(group_id=row.group_id, state=GroupState(row.state), version=row.version)
        for row in rows
    ]


def latest_version(conn: sa.Connection, run_id: str) -> int | None:
    newest = sa.func.max(policy_version.c.version)
    return conn.scalar(sa.select(newest).where(policy_version.c.run_id == run_id))


def train_steps(conn: sa.Connection, run_id: str, *, since: int) -> dict[int, int]:
    """The train step of each published version from ``since`` on."""
    v = policy_version.c
    rows = conn.execute(
        sa.select(v.version, v.train_step).where(v.run_id == run_id, v.version >= since)
    )
    return {row.version: row.train_step for row in rows}


def trainer_version(conn: sa.Connection, run_id: str) -> int:
    """Latest published version + batches that were consumed and whose weights are not published.

    A claimed batch counts from the claim on: work that is admitted between claim and publish will
    be consumed after both. Before the initial weights are published the version is that of theirs,
    0.
    """
    b = train_batch.c
    num_unpublished = conn.scalar(
        sa.select(sa.func.count()).where(
            b.run_id == run_id, b.policy_version.is_(None), b.state != BatchState.RETURNED
        )
    )
    return (latest_version(conn, run_id) or 0) + int(num_unpublished or 0)


def lift(conn: sa.Connection, run_id: str, *, version: int, pacing: Pacing) -> int:
    """Make the ladder hold at ``version``, which training did not reach; the number of groups
    lifted.

    See "Resume" in :mod:`dart_gui.data.staleness`.
    """
    rungs = ladder(conn, run_id)
    lifted = staleness.rebase([rung.version for rung in rungs], version, pacing)
    moved = [(rung, new) for rung, new in zip(rungs, lifted, strict=True) if new > rung.version]
    for rung, new in moved:
        conn.execute(
            _update(run_id, [rung.group_id]).values(
                version_shift=task_group.c.version_shift + (new - rung.version)
            )
        )
    return len(moved)


def move(
    conn: sa.Connection,
    run_id: str,
    group_ids: Collection[str],
    *,
    old: GroupState,
    new: GroupState,
    **values: Any,
) -> None:
    """Move groups that are all in state ``old``.

    Raises:
        DataError: the move is illegal, or a group is in another state.
    """
    check_move(f"group {', '.join(group_ids)}", old, new)
    moved = conn.execute(
        _update(run_id, group_ids).where(task_group.c.state == old).values(state=new, **values)
    ).rowcount
    if moved != len(group_ids):
        raise DataError(
            f"{len(group_ids)} groups should move {old} -> {new}, but only {moved} of "
            f"{', '.join(group_ids)} are {old}"
        )


def of_batch(conn: sa.Connection, run_id: str, batch_id: int) -> list[str]:
    g = task_group.c
    rows = conn.scalars(
        sa.select(g.group_id)
        .where(g.run_id == run_id, g.batch_id == batch_id)
        .order_by(g.planned_version, g.number)
    )
    return list(rows)


def close_if_done(
    conn: sa.Connection,
    run_id: str,
    group_id: str,
    *,
    stages: Sequence[Stage],
    pacing: Pacing,
    now: float,
    lender: Lender | None = None,
) -> GroupState:
    """Close the group when its last member is closed; the group's state afterwards.

    With less than half of its members stored it is CANCELLED (their rows stay). Otherwise curation
    decides between SKIPPED and COMPLETE; where all failed, together with a success that ``lender``
    finds.
    """
    states = _member_states(conn, run_id, group_id)
    if EpisodeState.PLANNED in states or EpisodeState.RUNNING in states:
        return GroupState.OPEN
    reason: str | None
    borrowed: Borrowed | None = None
    if 2 * states.count(EpisodeState.STORED) < len(states):
        new, reason = GroupState.CANCELLED, LOST_MEMBERS
    else:
        facts = _facts(conn, run_id, group_id)
        if lender is not None and not any(member.success for member in facts):
            borrowed = lender.find(conn, group_id)
        reason = reason_to_skip([*facts, *_borrowed_facts(borrowed)], stages)
        reason = reason or _reason_to_drop(conn, run_id, group_id, pacing)
        new = GroupState.SKIPPED if reason else GroupState.COMPLETE
    move(conn, run_id, [group_id], old=GroupState.OPEN, new=new, reason=reason, closed_at=now)
    if borrowed is not None and new is GroupState.COMPLETE:
        pool_use.record(conn, run_id, group_id, borrowed, now=now)
    return new


def _borrowed_facts(borrowed: Borrowed | None) -> list[MemberFacts]:
    if borrowed is None:
        return []
    return [
        MemberFacts(
            trajectory_id=borrowed.entry_id,
            reward=borrowed.reward,
            success=True,
            num_steps=borrowed.num_steps,
        )
    ]


def _reason_to_drop(conn: sa.Connection, run_id: str, group_id: str, pacing: Pacing) -> str | None:
    """A step older than the group's plan is a broken promise of the rollout service (a worker that
    went back). The group takes its true place in the ladder, and is dropped where that breaks it:
    a group that may never be consumed would hold the trainer up for ever.
    """
    oldest = conn.scalar(
        sa.select(sa.func.min(trajectory.c.version_min)).where(*_of(group_id, run_id))
    )
    planned = conn.scalar(
        sa.select(task_group.c.planned_version).where(
            task_group.c.run_id == run_id, task_group.c.group_id == group_id
        )
    )
    if oldest is None or planned is None or oldest >= planned:
        return None
    conn.execute(_update(run_id, [group_id]).values(planned_version=oldest))
    versions = [rung.version for rung in ladder(conn, run_id)]
    holds = staleness.feasible(versions, trainer_version(conn, run_id), pacing)
    return None if holds else STALE


def _of(group_id: str, run_id: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return trajectory.c.run_id == run_id, trajectory.c.group_id == group_id


def _member_states(conn: sa.Connection, run_id: str, group_id: str) -> list[EpisodeState]:
    states = conn.scalars(
        sa.select(episode.c.state).where(episode.c.run_id == run_id, episode.c.group_id == group_id)
    )
    return [EpisodeState(state) for state in states]


def _facts(conn: sa.Connection, run_id: str, group_id: str) -> list[MemberFacts]:
    t = trajectory.c
    rows = conn.execute(
        sa.select(t.trajectory_id, t.reward, t.success, t.num_steps)
        .where(*_of(group_id, run_id))
        .order_by(t.episode_id)
    )
    return [MemberFacts(**row._mapping) for row in rows]


def _update(run_id: str, group_ids: Collection[str]) -> sa.Update:
    return sa.update(task_group).where(
        task_group.c.run_id == run_id, task_group.c.group_id.in_(group_ids)
    )
