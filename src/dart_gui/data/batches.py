"""The trainer's side of the ledger: claim, publish, acknowledge, resume.

A batch is claimed by one trainer, and acknowledged by the durable checkpoint that lists it. What
was claimed after the checkpoint from which a trainer resumes goes back to the queue. So a
trajectory counts as trained exactly once, at whatever point the trainer is killed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from dart_gui.data import groups, staleness
from dart_gui.data.claims import Claim, read_group
from dart_gui.data.groups import Rung
from dart_gui.data.ledger import Ledger
from dart_gui.data.published_schema import CHECKPOINT_PATH_LENGTH
from dart_gui.data.records import CheckpointRecord
from dart_gui.data.schema import (
    checkpoint,
    durable_checkpoint,
    policy_version,
    rollout_run,
    train_batch,
    training_run,
    trajectory,
)
from dart_gui.data.staleness import Pacing
from dart_gui.data.states import BatchState, GroupState, check_move
from dart_gui.errors import DataError
from dart_gui.types import WeightsRef


@dataclass(kw_only=True)
class BatchBook:
    ledger: Ledger
    pacing: Pacing
    _epoch: int | None = field(default=None, init=False)

    @property
    def _run_id(self) -> str:
        return self.ledger.run_id

    def claim(self, train_step: int) -> Claim | None:
        """Claim the oldest complete groups; None while there are too few, or while the batch must
        wait for stragglers that it would leave behind with too little time.

        Raises:
            DataError: a batch of this train step is claimed already, another trainer took the run
                over, or the staleness bound is broken.
        """
        with self.ledger.transaction() as conn:
            self._own(conn)
            self._refuse_second_claim(conn, train_step)
            version = groups.trainer_version(conn, self._run_id)
            chosen = self._choose(groups.ladder(conn, self._run_id), version)
            if chosen is None:
                return None
            claimed = [
                read_group(
                    conn,
                    self._run_id,
                    rung,
                    version=version,
                    train_step=train_step,
                    pacing=self.pacing,
                )
                for rung in chosen
            ]
            ages = [item.staleness for group in claimed for item in group.trajectories]
            mean, worst = sum(ages) / len(ages), max(ages)
            batch_id = self._insert_batch(
                conn,
                train_step=train_step,
                trainer_version=version,
                num_groups=len(claimed),
                num_trajectories=len(ages),
                staleness_mean=mean,
                staleness_max=worst,
            )
            ids = [group.group_id for group in claimed]
            groups.move(
                conn,
                self._run_id,
                ids,
                old=GroupState.COMPLETE,
                new=GroupState.CLAIMED,
                batch_id=batch_id,
            )
        return Claim(
            batch_id=batch_id,
            trainer_version=version,
            groups=claimed,
            staleness_mean=mean,
            staleness_max=worst,
        )

    def give_back(self, batch_id: int) -> None:
        """Return one claimed batch to the queue: its blobs could not be read."""
        with self.ledger.transaction() as conn:
            self._own(conn)
            self._return_batch(conn, batch_id, BatchState.CLAIMED)

    def publish(self, train_step: int, path: str) -> WeightsRef:
        """Give weights the next policy version, in our table and in the published one, and mark the
        batches that they consumed.

        Raises:
            DataError: the path is too long for the published table, or another trainer took over.
        """
        if len(path) > CHECKPOINT_PATH_LENGTH:
            raise DataError(
                f"the path of the weights has {len(path)} characters, the table checkpoint holds "
                f"{CHECKPOINT_PATH_LENGTH}: use a shorter run.dir. It is {path}"
            )
        with self.ledger.transaction() as conn:
            self._own(conn)
            latest = groups.latest_version(conn, self._run_id)
            version = 0 if latest is None else latest + 1
            now = self.ledger.clock()
            conn.execute(
                sa.insert(policy_version).values(
                    run_id=self._run_id,
                    version=version,
                    train_step=train_step,
                    path=path,
                    published_at=now,
                )
            )
            conn.execute(
                sa.insert(checkpoint).values(
                    name="dart-gui",
                    version=f"v{version}",
                    run_id=self._run_id,
                    status="COMPLETED",
                    path=path,
                    source="Training Generated",
                    finished_at=sa.func.current_timestamp(),
                )
            )
            self._mark_published(conn, train_step, version)
            self._mend_ladder(conn)
        return WeightsRef(policy_version=version, path=path)

    def acknowledge(self, train_step: int, path: str, version: int | None) -> int:
        """Record a durable checkpoint: every batch up to its train step is trained for good. Gives
        the number of batches. Doing it twice changes nothing.
        """
        with self.ledger.transaction() as conn:
            self._own(conn)
            batches = self._live(conn, train_batch.c.train_step <= train_step)
            for row in batches:
                self._finish(conn, row.id, BatchState(row.state))
            self._forget_checkpoints(conn, durable_checkpoint.c.train_step == train_step)
            conn.execute(
                sa.insert(durable_checkpoint).values(
                    run_id=self._run_id,
                    train_step=train_step,
                    path=path,
                    policy_version=self._version_of(conn, train_step)
                    if version is None
                    else version,
                    created_at=self.ledger.clock(),
                )
            )
            return len(batches)

    def resume_from(self, train_step: int) -> int:
        """Take the run over at the checkpoint of ``train_step`` (0 without one): batches claimed
        after it return to the queue, later checkpoints are forgotten. Gives the number of groups.

        A trainer that held the run before is refused from now on.
        """
        with self.ledger.transaction() as conn:
            self._take_over(conn)
            batches = self._live(conn, train_batch.c.train_step > train_step)
            num_returned = sum(
                self._return_batch(conn, row.id, BatchState(row.state)) for row in batches
            )
            self._forget_checkpoints(conn, durable_checkpoint.c.train_step > train_step)
            self._mend_ladder(conn)
            return num_returned

    def latest_version(self) -> int | None:
        with self.ledger.reading() as conn:
            return groups.latest_version(conn, self._run_id)

    def weights(self, version: int | None = None) -> WeightsRef | None:
        """The published weights of a version (the latest for None); None where there are none."""
        v = policy_version.c
        query = sa.select(v.version, v.path).where(v.run_id == self._run_id)
        query = (
            query.order_by(v.version.desc())
            if version is None
            else query.where(v.version == version)
        )
        with self.ledger.reading() as conn:
            row = conn.execute(query.limit(1)).one_or_none()
        return None if row is None else WeightsRef(policy_version=row.version, path=row.path)

    def latest_checkpoint(self) -> CheckpointRecord | None:
        d = durable_checkpoint.c
        with self.ledger.reading() as conn:
            row = conn.execute(
                sa.select(d.train_step, d.path, d.policy_version)
                .where(d.run_id == self._run_id)
                .order_by(d.train_step.desc())
                .limit(1)
            ).one_or_none()
        return None if row is None else CheckpointRecord(**row._mapping)

    def _choose(self, rungs: list[Rung], version: int) -> list[Rung] | None:
        staleness.check_ladder([rung.version for rung in rungs], version, self.pacing)
        complete = [rung for rung in rungs if rung.state is GroupState.COMPLETE]
        chosen = complete[: self.pacing.groups_per_step]
        if len(chosen) < self.pacing.groups_per_step:
            return None
        rest = [rung.version for rung in rungs if rung not in chosen]
        return chosen if staleness.feasible(rest, version + 1, self.pacing) else None

    def _insert_batch(self, conn: sa.Connection, **values: float) -> int:
        result = conn.execute(
            sa.insert(train_batch).values(
                run_id=self._run_id,
                state=BatchState.CLAIMED,
                claimed_at=self.ledger.clock(),
                **values,
            )
        )
        key = result.inserted_primary_key
        assert key is not None
        return int(key[0])

    def _refuse_second_claim(self, conn: sa.Connection, train_step: int) -> None:
        if self._live(conn, train_batch.c.train_step == train_step):
            raise DataError(
                f"the batch of train step {train_step} of run {self._run_id} is claimed already: a "
                "trainer that starts again calls resume_from first"
            )

    def _live(self, conn: sa.Connection, condition: sa.ColumnElement[bool]) -> list[sa.Row[Any]]:
        """Batches that no checkpoint lists and that were not returned."""
        b = train_batch.c
        live = [BatchState.CLAIMED, BatchState.PUBLISHED]
        query = sa.select(b.id, b.state).where(
            b.run_id == self._run_id, b.state.in_(live), condition
        )
        return list(conn.execute(query.order_by(b.id)))

    def _mark_published(self, conn: sa.Connection, train_step: int, version: int) -> None:
        b = train_batch.c
        consumed = sa.and_(
            b.run_id == self._run_id,
            b.policy_version.is_(None),
            b.state != BatchState.RETURNED,
            b.train_step <= train_step,
        )
        for row in conn.execute(sa.select(b.id, b.state).where(consumed)).all():
            old = BatchState(row.state)
            new = BatchState.PUBLISHED if old is BatchState.CLAIMED else old
            if new is not old:
                check_move(f"batch {row.id}", old, new)
            update = sa.update(train_batch).where(b.id == row.id)
            conn.execute(update.values(state=new, policy_version=version))

    def _finish(self, conn: sa.Connection, batch_id: int, old: BatchState) -> None:
        ids = groups.of_batch(conn, self._run_id, batch_id)
        groups.move(conn, self._run_id, ids, old=GroupState.CLAIMED, new=GroupState.TRAINED)
        t, r = trajectory.c, rollout_run.c
        trained = sa.select(t.trajectory_id).where(t.run_id == self._run_id, t.group_id.in_(ids))
        conn.execute(
            sa.update(rollout_run)
            .where(r.run_id == self._run_id, r.trajectory_id.in_(trained))
            .values(used=r.used + 1)
        )
        self._close_batch(conn, batch_id, old, BatchState.ACKNOWLEDGED)

    def _return_batch(self, conn: sa.Connection, batch_id: int, old: BatchState) -> int:
        ids = groups.of_batch(conn, self._run_id, batch_id)
        groups.move(
            conn,
            self._run_id,
            ids,
            old=GroupState.CLAIMED,
            new=GroupState.COMPLETE,
            batch_id=None,
        )
        self._close_batch(conn, batch_id, old, BatchState.RETURNED)
        return len(ids)

    def _close_batch(
        self, conn: sa.Connection, batch_id: int, old: BatchState, new: BatchState
    ) -> None:
        check_move(f"batch {batch_id}", old, new)
        update = sa.update(train_batch).where(train_batch.c.id == batch_id)
        conn.execute(update.values(state=new, closed_at=self.ledger.clock()))

    def _version_of(self, conn: sa.Connection, train_step: int) -> int | None:
        v = policy_version.c
        newest = sa.select(sa.func.max(v.version))
        return conn.scalar(newest.where(v.run_id == self._run_id, v.train_step == train_step))

    def _forget_checkpoints(self, conn: sa.Connection, condition: sa.ColumnElement[bool]) -> None:
        of_run = durable_checkpoint.c.run_id == self._run_id
        conn.execute(sa.delete(durable_checkpoint).where(of_run, condition))

    def _mend_ladder(self, conn: sa.Connection) -> None:
        """Where batches came back, or a version consumed none, the ladder may not hold."""
        reached = groups.trainer_version(conn, self._run_id)
        groups.lift(conn, self._run_id, version=reached, pacing=self.pacing)

    def _own(self, conn: sa.Connection) -> None:
        """Refuse to go on after another trainer took the run over; the first call takes it."""
        if self._epoch is None:
            self._take_over(conn)
            return
        run = training_run.c
        epoch = conn.scalar(sa.select(run.trainer_epoch).where(run.run_id == self._run_id))
        if epoch != self._epoch:
            raise DataError(
                f"another trainer took run {self._run_id} over: two trainers on one run are "
                "refused. End this one, or start it on a run of its own"
            )

    def _take_over(self, conn: sa.Connection) -> None:
        run = training_run.c
        of_run = run.run_id == self._run_id
        conn.execute(
            sa.update(training_run).where(of_run).values(trainer_epoch=run.trainer_epoch + 1)
        )
        self._epoch = conn.scalar(sa.select(run.trainer_epoch).where(of_run))
