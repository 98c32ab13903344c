"""The runner's side of the ledger: plan groups, hand out episodes, take trajectories and failures.

A planned episode ends as a stored trajectory or as a counted cancellation with a reason; in between
it may go back to the plan, after a failure under ``max_attempts`` or because the runner died.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from dart_gui.data import groups, staleness
from dart_gui.data.curation import Stage
from dart_gui.data.ledger import Ledger
from dart_gui.data.planner import Planner
from dart_gui.data.pool_use import Lender
from dart_gui.data.published_schema import INSTRUCTION_LENGTH
from dart_gui.data.rows import facts_row, step_rows
from dart_gui.data.sampler import episode_seed
from dart_gui.data.schema import (
    MESSAGE_LENGTH,
    episode,
    episode_failure,
    policy_version,
    rollout_run,
    step,
    task_group,
    trajectory,
)
from dart_gui.data.staleness import Pacing
from dart_gui.data.states import EpisodeState, GroupState, check_move
from dart_gui.errors import DataError
from dart_gui.types import PlannedEpisode, StopReason, Task, Trajectory

INTERRUPTED = "interrupted"


@dataclass(frozen=True, kw_only=True)
class EpisodeBook:
    ledger: Ledger
    pacing: Pacing
    stages: Sequence[Stage]
    planner: Planner | None
    max_attempts: int
    env_version: str
    lender: Lender | None

    @property
    def _run_id(self) -> str:
        return self.ledger.run_id

    def recover(self) -> int:
        """Put the episodes of a runner that is gone back into the plan; how many there were.

        An interruption is no failure: the attempt keeps its number, and is recorded as interrupted.
        """
        e, now = episode.c, self.ledger.clock()
        with self.ledger.transaction() as conn:
            rows = conn.execute(
                sa.select(e.episode_id, e.attempt).where(
                    e.run_id == self._run_id, e.state == EpisodeState.RUNNING
                )
            ).all()
            for row in rows:
                self._record_failure(
                    conn, row.episode_id, row.attempt, reason=INTERRUPTED, message="runner ended"
                )
            if rows:
                check_move("episode", EpisodeState.RUNNING, EpisodeState.PLANNED)
                conn.execute(
                    sa.update(episode)
                    .where(e.run_id == self._run_id, e.state == EpisodeState.RUNNING)
                    .values(state=EpisodeState.PLANNED, changed_at=now)
                )
            return len(rows)

    def next(self, served_version: int) -> PlannedEpisode | None:
        """The oldest planned episode, else the first of a new group, else None: nothing admitted.

        ``served_version`` is the lowest policy version that any live worker serves. An episode
        waits while that is below the version of its group's plan (a service that was restarted with
        older weights), since its steps would be older than the ladder assumes.
        """
        with self.ledger.transaction() as conn:
            planned = self._oldest_planned(conn, served_version)
            if planned is None:
                if not self._plan_group(conn, served_version):
                    return None
                planned = self._oldest_planned(conn, served_version)
                assert planned is not None
            self._move(conn, planned.episode_id, EpisodeState.PLANNED, EpisodeState.RUNNING)
            return planned

    def fail(self, planned: PlannedEpisode, reason: StopReason, message: str) -> None:
        """Record a failed attempt; plan the next one, or cancel the episode after the last.

        Raises:
            DataError: this attempt is not running.
        """
        with self.ledger.transaction() as conn:
            self._require_running(conn, planned.episode_id, planned.attempt, EpisodeState.PLANNED)
            self._record_failure(
                conn, planned.episode_id, planned.attempt, reason=reason, message=message
            )
            if planned.attempt < self.max_attempts:
                self._move(
                    conn,
                    planned.episode_id,
                    EpisodeState.RUNNING,
                    EpisodeState.PLANNED,
                    attempt=planned.attempt + 1,
                )
                return
            self._move(
                conn,
                planned.episode_id,
                EpisodeState.RUNNING,
                EpisodeState.CANCELLED,
                reason=reason.value,
            )
            self._close_if_done(conn, planned.group_id)

    def stored_sha256(self, trajectory_id: str) -> str | None:
        """The sha256 of a stored trajectory's blob; None where it is not stored."""
        with self.ledger.reading() as conn:
            return self._stored_sha256(conn, trajectory_id)

    def is_stored(self, record: Trajectory, blob_sha256: str) -> bool:
        """Whether this very trajectory is stored; asked before any blob is written.

        Raises:
            DataError: another one is stored under its id; or it is not stored and no running
                attempt owes it (it is of another run or task, or its attempt is over).
        """
        with self.ledger.reading() as conn:
            stored = self._stored_sha256(conn, record.trajectory_id)
            if stored is None:
                self._require_owed(conn, record)
                return False
        if stored != blob_sha256:
            raise DataError(
                f"trajectory {record.trajectory_id} is stored already, with other content: a "
                "trajectory never changes"
            )
        return True

    def store(self, record: Trajectory, blob_sha256: str) -> None:
        """Add the rows of a trajectory whose blobs are written, and close what it completes."""
        with self.ledger.transaction() as conn:
            self._require_owed(conn, record)
            conn.execute(sa.insert(rollout_run).values(self._published_row(conn, record)))
            conn.execute(
                sa.insert(trajectory).values(
                    **facts_row(record),
                    stored_at=self.ledger.clock(),
                    blob_sha256=blob_sha256,
                    env_version=self.env_version or None,
                )
            )
            conn.execute(sa.insert(step), step_rows(record))
            self._move(conn, record.trajectory_id, EpisodeState.RUNNING, EpisodeState.STORED)
            self._close_if_done(conn, record.group_id)

    def _stored_sha256(self, conn: sa.Connection, trajectory_id: str) -> str | None:
        t = trajectory.c
        of_id = (t.run_id == self._run_id, t.trajectory_id == trajectory_id)
        return conn.scalar(sa.select(t.blob_sha256).where(*of_id))

    def _oldest_planned(self, conn: sa.Connection, served_version: int) -> PlannedEpisode | None:
        e, g = episode.c, task_group.c
        row = conn.execute(
            sa.select(e.episode_id, e.group_id, e.attempt, g.task_id, g.seed, g.size, g.max_steps)
            .join_from(episode, task_group, _same_group())
            .where(
                e.run_id == self._run_id,
                e.state == EpisodeState.PLANNED,
                g.planned_version <= served_version,
            )
            .order_by(g.number, e.member)
            .limit(1)
        ).one_or_none()
        if row is None:
            return None
        return PlannedEpisode(
            episode_id=row.episode_id,
            group_id=row.group_id,
            task=Task(task_id=row.task_id, seed=row.seed),
            attempt=row.attempt,
            seed=episode_seed(self._required_planner().sampler.seed, row.episode_id, row.attempt),
            group_size=row.size,
            max_steps=row.max_steps,
        )

    def _plan_group(self, conn: sa.Connection, served_version: int) -> bool:
        version = groups.trainer_version(conn, self._run_id)
        in_system = [rung.version for rung in groups.ladder(conn, self._run_id)]
        if not staleness.admits(in_system, served_version, version, self.pacing):
            return False
        newest = sa.select(sa.func.max(task_group.c.number)).where(
            task_group.c.run_id == self._run_id
        )
        last = conn.scalar(newest)
        number = 0 if last is None else last + 1
        self._insert_group(conn, number, served_version)
        return True

    def _insert_group(self, conn: sa.Connection, number: int, served_version: int) -> None:
        plan = self._required_planner().plan(conn, number)
        group_id, now = f"g{number:06d}", self.ledger.clock()
        conn.execute(
            sa.insert(task_group).values(
                run_id=self._run_id,
                group_id=group_id,
                number=number,
                task_id=plan.task.task_id,
                seed=plan.task.seed,
                size=plan.size,
                max_steps=plan.max_steps,
                state=GroupState.OPEN,
                planned_version=served_version,
                planned_at=now,
            )
        )
        members: Iterable[int] = range(plan.size)
        conn.execute(
            sa.insert(episode),
            [
                {
                    "run_id": self._run_id,
                    "episode_id": f"{group_id}-{member:02d}",
                    "group_id": group_id,
                    "member": member,
                    "state": EpisodeState.PLANNED,
                    "attempt": 1,
                    "changed_at": now,
                }
                for member in members
            ],
        )

    def _required_planner(self) -> Planner:
        if self.planner is None:
            raise DataError("this data manager was opened without a task sampler: it cannot plan")
        return self.planner

    def _require_owed(self, conn: sa.Connection, record: Trajectory) -> None:
        if record.run_id != self._run_id:
            raise DataError(
                f"trajectory {record.trajectory_id} of run {record.run_id} came to the data "
                f"manager of run {self._run_id}"
            )
        # A trajectory is named after its episode.
        row = self._require_running(conn, record.trajectory_id, record.attempt, EpisodeState.STORED)
        planned = (row["group_id"], row["task_id"], row["seed"])
        got = (record.group_id, record.task.task_id, record.task.seed)
        if planned != got:
            raise DataError(
                f"trajectory {record.trajectory_id} is of (group, task, seed) {got}, its episode "
                f"was planned as {planned}"
            )

    def _require_running(
        self, conn: sa.Connection, episode_id: str, attempt: int, target: EpisodeState
    ) -> sa.RowMapping:
        e, g = episode.c, task_group.c
        found = conn.execute(
            sa.select(e.state, e.attempt, e.group_id, g.task_id, g.seed)
            .join_from(episode, task_group, _same_group())
            .where(e.run_id == self._run_id, e.episode_id == episode_id)
        )
        row = found.mappings().one_or_none()
        if row is None:
            raise DataError(f"there is no planned episode {episode_id} in run {self._run_id}")
        check_move(f"episode {episode_id}", EpisodeState(row["state"]), target)
        if row["attempt"] != attempt:
            raise DataError(
                f"attempt {attempt} of episode {episode_id} is over: attempt {row['attempt']} is "
                "running"
            )
        return row

    def _move(
        self,
        conn: sa.Connection,
        episode_id: str,
        old: EpisodeState,
        new: EpisodeState,
        *,
        attempt: int | None = None,
        reason: str | None = None,
    ) -> None:
        check_move(f"episode {episode_id}", old, new)
        values = {"state": new, "changed_at": self.ledger.clock(), "reason": reason}
        if attempt is not None:
            values["attempt"] = attempt
        conn.execute(
            sa.update(episode)
            .where(
                episode.c.run_id == self._run_id,
                episode.c.episode_id == episode_id,
                episode.c.state == old,
            )
            .values(values)
        )

    def _record_failure(
        self, conn: sa.Connection, episode_id: str, attempt: int, *, reason: str, message: str
    ) -> None:
        conn.execute(
            sa.insert(episode_failure).values(
                run_id=self._run_id,
                episode_id=episode_id,
                attempt=attempt,
                reason=str(reason),
                message=message[:MESSAGE_LENGTH],
                failed_at=self.ledger.clock(),
            )
        )

    def _close_if_done(self, conn: sa.Connection, group_id: str) -> None:
        groups.close_if_done(
            conn,
            self._run_id,
            group_id,
            stages=self.stages,
            pacing=self.pacing,
            now=self.ledger.clock(),
            lender=self.lender,
        )

    def _published_row(self, conn: sa.Connection, record: Trajectory) -> dict[str, Any]:
        weights = conn.scalar(
            sa.select(policy_version.c.path).where(
                policy_version.c.run_id == self._run_id,
                policy_version.c.version == record.version_max,
            )
        )
        return {
            "run_id": self._run_id,
            "trajectory_id": record.trajectory_id,
            "task_id": record.task.task_id,
            "trace_id": f"{record.trajectory_id}-{record.attempt}",
            "reward": record.reward,
            "num_chunks": len(record.steps),
            "used": 0,
            "model_version": weights,
            "instruction": record.instruction[:INSTRUCTION_LENGTH],
        }


def _same_group() -> sa.ColumnElement[bool]:
    return sa.and_(
        episode.c.run_id == task_group.c.run_id, episode.c.group_id == task_group.c.group_id
    )
