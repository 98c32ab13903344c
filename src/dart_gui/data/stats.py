"""What the ledger can tell about a run: counts, success rates, listings. Reads only."""

from __future__ import annotations

import sqlalchemy as sa

from dart_gui.data import groups
from dart_gui.data.ledger import Ledger
from dart_gui.data.records import TaskStats, TrajectoryFacts
from dart_gui.data.schema import episode, episode_failure, task_group, train_batch, trajectory
from dart_gui.data.states import BatchState, EpisodeState, GroupState
from dart_gui.types import StopReason

Counts = dict[str, int | dict[str, int]]


def counts(ledger: Ledger) -> Counts:
    """Rows by state and by reason; every state has an entry, 0 included."""
    with ledger.reading() as conn:
        group_states = _tally(conn, ledger.run_id, task_group.c.state)
        return {
            "groups": {s.value: group_states.get(s, 0) for s in GroupState},
            "episodes": _filled(_tally(conn, ledger.run_id, episode.c.state), EpisodeState),
            "batches": _filled(_tally(conn, ledger.run_id, train_batch.c.state), BatchState),
            "failures": _tally(conn, ledger.run_id, episode_failure.c.reason),
            "skipped": _tally(
                conn,
                ledger.run_id,
                task_group.c.reason,
                task_group.c.state == GroupState.SKIPPED,
            ),
            "cancelled": _tally(
                conn,
                ledger.run_id,
                task_group.c.reason,
                task_group.c.state == GroupState.CANCELLED,
            ),
            "cancelled_episodes": _tally(
                conn, ledger.run_id, episode.c.reason, episode.c.state == EpisodeState.CANCELLED
            ),
            "in_system": group_states.get(GroupState.OPEN, 0)
            + group_states.get(GroupState.COMPLETE, 0),
            "trainer_version": groups.trainer_version(conn, ledger.run_id),
        }


def _filled(tally: dict[str, int], states: type[EpisodeState] | type[BatchState]) -> dict[str, int]:
    return {state.value: tally.get(state.value, 0) for state in states}


def _tally(
    conn: sa.Connection,
    run_id: str,
    column: sa.Column[str],
    condition: sa.ColumnElement[bool] | None = None,
) -> dict[str, int]:
    query = sa.select(column, sa.func.count()).where(column.table.c.run_id == run_id)
    if condition is not None:
        query = query.where(condition)
    return {value: number for value, number in conn.execute(query.group_by(column))}


def task_stats(ledger: Ledger, *, last: int) -> dict[str, TaskStats]:
    """Per task_id, over its ``last`` newest stored trajectories."""
    t = trajectory.c
    age = sa.func.row_number().over(partition_by=t.task_id, order_by=t.id.desc()).label("age")
    newest = (
        sa.select(t.task_id, t.success, t.reward, t.num_steps, age)
        .where(t.run_id == ledger.run_id)
        .subquery()
    )
    n = newest.c
    success = sa.func.avg(sa.case((n.success, 1.0), else_=0.0))
    query = (
        sa.select(
            n.task_id, sa.func.count(), success, sa.func.avg(n.reward), sa.func.avg(n.num_steps)
        )
        .where(n.age <= last)
        .group_by(n.task_id)
        .order_by(n.task_id)
    )
    with ledger.reading() as conn:
        return {
            task_id: TaskStats(
                num=number,
                success_rate=float(rate),
                mean_reward=float(reward),
                mean_steps=float(steps),
            )
            for task_id, number, rate, reward, steps in conn.execute(query)
        }


_FATES = {
    GroupState.SKIPPED: "skipped",
    GroupState.CANCELLED: "skipped",
    GroupState.OPEN: "waiting",
    GroupState.COMPLETE: "waiting",
    GroupState.CLAIMED: "trained",
    GroupState.TRAINED: "trained",
}


def task_flow(ledger: Ledger) -> dict[str, dict[str, dict[str, float]]]:
    """Per task and fate of its groups: ``num_trajectories``, ``mean_steps`` and ``mean_s`` (wall)."""
    t, g = trajectory.c, task_group.c
    query = (
        sa.select(
            t.task_id,
            g.state,
            sa.func.count(),
            sa.func.sum(t.num_steps),
            sa.func.sum(t.ended_at - t.started_at),
        )
        .join_from(trajectory, task_group, sa.and_(t.run_id == g.run_id, t.group_id == g.group_id))
        .where(t.run_id == ledger.run_id)
        .group_by(t.task_id, g.state)
        .order_by(t.task_id)
    )
    sums: dict[tuple[str, str], tuple[int, float, float]] = {}
    with ledger.reading() as conn:
        for task_id, state, number, num_steps, wall_s in conn.execute(query):
            key = (task_id, _FATES[GroupState(state)])
            before = sums.get(key, (0, 0.0, 0.0))
            sums[key] = (
                before[0] + int(number),
                before[1] + float(num_steps),
                before[2] + float(wall_s),
            )
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (task_id, fate), (number, num_steps, wall_s) in sums.items():
        found.setdefault(task_id, {})[fate] = {
            "num_trajectories": number,
            "mean_steps": num_steps / number,
            "mean_s": wall_s / number,
        }
    return found


def trajectories(
    ledger: Ledger,
    *,
    task_id: str | None = None,
    group_id: str | None = None,
    success: bool | None = None,
    after_id: int = 0,
    limit: int | None = None,
) -> list[TrajectoryFacts]:
    """Stored trajectories in the order of storing; ``after_id`` = the last row's id pages on."""
    t = trajectory.c
    hidden = ("run_id", "blob_sha256")
    query = sa.select(*(column for column in t if column.name not in hidden)).where(
        t.run_id == ledger.run_id, t.id > after_id
    )
    wanted = ((t.task_id, task_id), (t.group_id, group_id), (t.success, success))
    for column, value in wanted:
        if value is not None:
            query = query.where(column == value)
    with ledger.reading() as conn:
        rows = conn.execute(query.order_by(t.id).limit(limit)).mappings().all()
    return [
        TrajectoryFacts(**{**row, "stop_reason": StopReason(row["stop_reason"])}) for row in rows
    ]
