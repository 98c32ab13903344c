"""Plans a group: its task, its number of attempts, its step limit. Reads the ledger, keeps nothing.

With the fixed rules a plan is a function of the group's number alone; the adaptive ones look at the
newest trajectories of each task. Every function works within the write transaction of ``conn``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from dart_gui.config import CurationConfig
from dart_gui.data import groups, task_level
from dart_gui.data.rates import Outcome, posterior, success_rate, window
from dart_gui.data.sampler import Sampler
from dart_gui.data.schema import task_group, trajectory
from dart_gui.data.task_level import TaskPast
from dart_gui.types import Task

MAX_OUTCOMES = 256  # of one task, the newest; bounds what a plan reads


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    task: Task
    size: int
    max_steps: int | None  # None: the run's own limit


@dataclass(frozen=True, kw_only=True)
class Planner:
    """``max_steps`` is the run's limit of model calls, the ceiling of every dynamic one."""

    run_id: str
    sampler: Sampler
    curation: CurationConfig
    group_size: int
    max_steps: int

    def plan(self, conn: sa.Connection, number: int) -> GroupPlan:
        """The plan of the group with this number (0, 1, ...)."""
        task = self.sampler.sample(number)
        pasts: list[TaskPast] = []
        sizes: dict[str, int] = {}
        if self._looks_at_all:
            pasts = [self._past(conn, task_id) for task_id in self.sampler.task_ids]
            sizes = self._sizes(pasts)
        if self.curation.task_order == "signal":
            chosen = task_level.next_task(
                number, pasts, sizes, floor=self.curation.task_floor, seed=self.sampler.seed
            )
            task = self.sampler.instance(chosen, number)
        if not pasts and self._looks_at_one:
            pasts = [self._past(conn, task.task_id)]
            sizes = self._sizes(pasts)
        past = next((past for past in pasts if past.task_id == task.task_id), None)
        return GroupPlan(
            task=task,
            size=sizes.get(task.task_id, self.group_size),
            max_steps=self._step_limit(past.outcomes, number) if past else None,
        )

    @property
    def _looks_at_all(self) -> bool:
        """Sharing a budget, or choosing a task, compares all tasks."""
        return self.curation.rollout_rule == "beta" or self.curation.task_order == "signal"

    @property
    def _looks_at_one(self) -> bool:
        return self.curation.rollout_rule != "fixed" or self.curation.step_limit != "fixed"

    def _sizes(self, pasts: Sequence[TaskPast]) -> dict[str, int]:
        rule, config = self.curation.rollout_rule, self.curation
        if rule == "fixed":
            return {past.task_id: self.group_size for past in pasts}
        if rule == "published":
            return {
                past.task_id: task_level.published_rollouts(
                    success_rate(past.outcomes),
                    n_max=config.max_rollouts or self.group_size,
                    n_min=config.min_rollouts,
                    threshold=config.rollout_threshold,
                )
                for past in pasts
            }
        return task_level.beta_rollouts(
            {past.task_id: posterior(past.outcomes) for past in pasts},
            n_min=config.min_rollouts,
            n_max=config.max_rollouts or 2 * self.group_size,
            target=config.both_outcomes,
            budget=self.group_size,
        )

    def _step_limit(self, outcomes: Sequence[Outcome], number: int) -> int | None:
        if self.curation.step_limit == "fixed":
            return None
        if task_level.is_probe(number, seed=self.sampler.seed):
            return None
        limit = task_level.step_limit(
            outcomes,
            quantile=self.curation.step_quantile,
            slack=self.curation.step_slack,
            floor=self.curation.step_floor,
            ceiling=self.max_steps,
        )
        return None if limit >= self.max_steps else limit

    def _past(self, conn: sa.Connection, task_id: str) -> TaskPast:
        g = task_group.c
        last = conn.scalar(
            sa.select(sa.func.max(g.number)).where(g.run_id == self.run_id, g.task_id == task_id)
        )
        return TaskPast(
            task_id=task_id,
            outcomes=window(
                self._outcomes(conn, task_id),
                latest_version=groups.latest_version(conn, self.run_id) or 0,
                window_versions=self.curation.window_versions,
                min_window=self.curation.min_window,
            ),
            last_number=last,
        )

    def _outcomes(self, conn: sa.Connection, task_id: str) -> list[Outcome]:
        t, g = trajectory.c, task_group.c
        rows = conn.execute(
            sa.select(t.success, t.reward, t.num_steps, g.max_steps, t.version_min, t.env_s)
            .join_from(
                trajectory, task_group, sa.and_(t.run_id == g.run_id, t.group_id == g.group_id)
            )
            .where(t.run_id == self.run_id, t.task_id == task_id)
            .order_by(t.id.desc())
            .limit(MAX_OUTCOMES)
        )
        return [
            Outcome(
                success=bool(row.success),
                reward=row.reward,
                num_steps=row.num_steps,
                max_steps=row.max_steps or self.max_steps,
                version=row.version_min,
                env_s=row.env_s,
            )
            for row in rows
        ]
