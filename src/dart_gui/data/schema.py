"""The tables of our own, beside the two published ones.

Every table carries ``run_id``, so that several runs can share one database. Times are Unix seconds,
durations seconds; states are the values of the enums in :mod:`dart_gui.data.states`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from dart_gui.data.published_schema import BIG_ID, checkpoint, metadata, rollout_run

__all__ = [
    "SCHEMA_VERSION",
    "checkpoint",
    "durable_checkpoint",
    "episode",
    "episode_failure",
    "ledger_meta",
    "metadata",
    "policy_version",
    "pool_use",
    "rollout_run",
    "step",
    "task_group",
    "train_batch",
    "training_run",
    "trajectory",
]

SCHEMA_VERSION = 2
"""Counted up with every change of these tables; a ledger from a newer version is refused."""

UPGRADES: Mapping[int, tuple[str, ...]] = {
    2: (
        "ALTER TABLE task_group ADD COLUMN max_steps BIGINT",
        "ALTER TABLE trajectory ADD COLUMN env_version VARCHAR(191)",
    ),
}
"""What brings a ledger of the version before to this one; tables that it lacks are created anyway."""

MESSAGE_LENGTH = 2000
_MYSQL: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mysql_default_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
}


def _id(name: str, *, nullable: bool = False, primary_key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(191), nullable=nullable, primary_key=primary_key)


def _word(name: str, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(32), nullable=nullable)


def _int(name: str, *, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=nullable)


def _float(name: str, *, nullable: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=nullable)


ledger_meta = sa.Table(
    "ledger_meta",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.String(255), nullable=False),
    **_MYSQL,
)

training_run = sa.Table(
    "training_run",
    metadata,
    _id("run_id", primary_key=True),
    _float("created_at"),
    sa.Column("trainer_epoch", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    **_MYSQL,
)

task_group = sa.Table(
    "task_group",
    metadata,
    _id("run_id", primary_key=True),
    _id("group_id", primary_key=True),
    _int("number"),  # the order of planning, from 0
    _id("task_id"),
    _int("seed"),
    _int("size"),
    _int("max_steps", nullable=True),  # of its episodes; NULL: the run's own limit
    _word("state"),
    _word("reason", nullable=True),  # of SKIPPED and CANCELLED
    _int("planned_version"),  # lowest version that was served when it was planned
    # Versions that passed without training (a resume); see staleness.py.
    sa.Column("version_shift", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    _int("batch_id", nullable=True),  # of CLAIMED and TRAINED
    _float("planned_at"),
    _float("closed_at", nullable=True),
    sa.UniqueConstraint("run_id", "number", name="uk_task_group_number"),
    sa.Index("idx_task_group_state", "run_id", "state"),
    sa.Index("idx_task_group_batch", "run_id", "batch_id"),
    **_MYSQL,
)

episode = sa.Table(
    "episode",
    metadata,
    _id("run_id", primary_key=True),
    _id("episode_id", primary_key=True),
    _id("group_id"),
    _int("member"),  # from 0
    _word("state"),
    _int("attempt"),  # of the try that is planned, running or ended the episode; from 1
    _word("reason", nullable=True),  # of CANCELLED
    _float("changed_at"),
    sa.ForeignKeyConstraint(["run_id", "group_id"], ["task_group.run_id", "task_group.group_id"]),
    sa.Index("idx_episode_state", "run_id", "state"),
    sa.Index("idx_episode_group", "run_id", "group_id"),
    **_MYSQL,
)

episode_failure = sa.Table(
    "episode_failure",
    metadata,
    sa.Column("id", BIG_ID, primary_key=True, autoincrement=True),
    _id("run_id"),
    _id("episode_id"),
    _int("attempt"),
    _word("reason"),  # a StopReason, or "interrupted" where the runner itself died
    sa.Column("message", sa.String(MESSAGE_LENGTH), nullable=False),
    _float("failed_at"),
    sa.ForeignKeyConstraint(["run_id", "episode_id"], ["episode.run_id", "episode.episode_id"]),
    sa.Index("idx_episode_failure_reason", "run_id", "reason"),
    **_MYSQL,
)

trajectory = sa.Table(
    "trajectory",
    metadata,
    sa.Column("id", BIG_ID, primary_key=True, autoincrement=True),
    _id("run_id"),
    _id("trajectory_id"),
    _id("group_id"),
    _id("episode_id"),
    _id("task_id"),
    _int("seed"),
    _int("attempt"),
    _word("stop_reason"),
    sa.Column("success", sa.Boolean, nullable=False),
    _float("reward"),
    _int("num_steps"),
    _int("num_response_tokens"),
    _int("version_min"),
    _int("version_max"),
    _float("started_at"),
    _float("ended_at"),
    _float("model_s"),
    _float("env_s"),
    _float("stored_at"),
    sa.Column("blob_sha256", sa.String(64), nullable=False),
    _id("env_version", nullable=True),  # equal versions replay and evaluate equally
    sa.ForeignKeyConstraint(["run_id", "group_id"], ["task_group.run_id", "task_group.group_id"]),
    sa.UniqueConstraint("run_id", "trajectory_id", name="uk_trajectory"),
    sa.UniqueConstraint("run_id", "episode_id", name="uk_trajectory_episode"),
    sa.Index("idx_trajectory_group", "run_id", "group_id"),
    sa.Index("idx_trajectory_task", "run_id", "task_id"),
    **_MYSQL,
)

step = sa.Table(
    "step",
    metadata,
    _id("run_id", primary_key=True),
    _id("trajectory_id", primary_key=True),
    sa.Column("step_index", sa.BigInteger, primary_key=True, autoincrement=False),
    _int("num_response_tokens"),
    _int("policy_version"),
    _float("entropy"),  # mean over its response tokens, nats; as the engine measured it
    **_MYSQL,
)

pool_use = sa.Table(
    "pool_use",
    metadata,
    _id("run_id", primary_key=True),
    _id("group_id", primary_key=True),
    _word("source"),  # "pool", or "run" where the run's own success is borrowed
    _id("entry_id"),
    sa.Column("blob_sha256", sa.String(64), nullable=False),
    _float("reward"),
    _int("num_steps"),
    _float("used_at"),
    sa.ForeignKeyConstraint(["run_id", "group_id"], ["task_group.run_id", "task_group.group_id"]),
    sa.Index("idx_pool_use_entry", "run_id", "entry_id"),
    **_MYSQL,
)

policy_version = sa.Table(
    "policy_version",
    metadata,
    _id("run_id", primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    _int("train_step"),
    sa.Column("path", sa.String(512), nullable=False),
    _float("published_at"),
    **_MYSQL,
)

train_batch = sa.Table(
    "train_batch",
    metadata,
    sa.Column("id", BIG_ID, primary_key=True, autoincrement=True),
    _id("run_id"),
    _int("train_step"),
    _word("state"),
    _int("trainer_version"),  # at consumption
    _int("policy_version", nullable=True),  # that its training produced, once published
    _int("num_groups"),
    _int("num_trajectories"),
    _int("staleness_max"),
    _float("staleness_mean"),
    _float("claimed_at"),
    _float("closed_at", nullable=True),
    sa.Index("idx_train_batch_state", "run_id", "state"),
    **_MYSQL,
)

durable_checkpoint = sa.Table(
    "durable_checkpoint",
    metadata,
    sa.Column("id", BIG_ID, primary_key=True, autoincrement=True),
    _id("run_id"),
    _int("train_step"),
    sa.Column("path", sa.String(512), nullable=False),
    _int("policy_version", nullable=True),
    _float("created_at"),
    sa.UniqueConstraint("run_id", "train_step", name="uk_durable_checkpoint"),
    **_MYSQL,
)
