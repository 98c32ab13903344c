"""The two tables of the published system, ``rollout_run`` and ``checkpoint``.

On MySQL the compiled DDL equals the published one: types, collations, comments, keys, engine. On
SQLite names, order, nullability, defaults and uniques do; collations, comments and ON UPDATE have
no counterpart there (``onupdate`` stands in for the last).
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles

metadata = sa.MetaData()

BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""SQLite counts only an INTEGER PRIMARY KEY up by itself."""

_UNICODE = "utf8mb4_unicode_ci"
INSTRUCTION_LENGTH = 1024
CHECKPOINT_PATH_LENGTH = 255


class _TouchedAt(sa.sql.expression.ClauseElement):
    """Default of a column that MySQL also sets on every update."""

    inherit_cache = True


@compiles(_TouchedAt)
def _touched_at(element: _TouchedAt, compiler: Any, **kw: Any) -> str:
    return "CURRENT_TIMESTAMP"


@compiles(_TouchedAt, "mysql")
@compiles(_TouchedAt, "mariadb")
def _touched_at_mysql(element: _TouchedAt, compiler: Any, **kw: Any) -> str:
    return "CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP"


def _touched_at_default() -> Any:
    return _TouchedAt()  # SQLAlchemy takes any clause here; its annotations do not say so


def _text(length: int, *, charset: str | None = None) -> sa.types.TypeEngine[str]:
    on_mysql = mysql.VARCHAR(length, charset=charset, collation=_UNICODE)
    return sa.String(length).with_variant(on_mysql, "mysql", "mariadb")


_NULL = sa.text("NULL")
_NOW = sa.text("CURRENT_TIMESTAMP")

rollout_run = sa.Table(
    "rollout_run",
    metadata,
    sa.Column("id", BIG_ID, primary_key=True, autoincrement=True),
    sa.Column("run_id", _text(191, charset="utf8mb4"), server_default=_NULL),
    sa.Column("trajectory_id", _text(191), nullable=False),
    sa.Column("task_id", _text(191), nullable=False),
    sa.Column("trace_id", _text(191), nullable=False),
    sa.Column("split_dir", _text(512, charset="utf8mb4"), server_default=_NULL),
    sa.Column("reward", sa.Double, server_default=_NULL),
    sa.Column("num_chunks", sa.Integer, server_default=_NULL),
    sa.Column("used", sa.Integer, nullable=False, server_default=sa.text("'0'")),
    sa.Column("model_version", _text(512, charset="utf8mb4"), server_default=_NULL),
    sa.Column("instruction", _text(INSTRUCTION_LENGTH, charset="utf8mb4"), server_default=_NULL),
    sa.Column("create_at", sa.TIMESTAMP, nullable=False, server_default=_NOW),
    sa.UniqueConstraint("id", name="uq_rollout_run_id"),
    sa.UniqueConstraint("trajectory_id", "run_id", name="uk_rollout_run_traj_run"),
    sa.Index("idx_rollout_run_task", "task_id"),
    mysql_engine="InnoDB",
    mysql_default_charset="utf8mb4",
    mysql_collate=_UNICODE,
)

checkpoint = sa.Table(
    "checkpoint",
    metadata,
    sa.Column("id", BIG_ID, primary_key=True, autoincrement=True, comment="Primary Key ID"),
    sa.Column(
        "name",
        sa.String(50),
        nullable=False,
        server_default=sa.text("''"),
        comment="Checkpoint Name (Unique English Identifier)",
    ),
    sa.Column(
        "version",
        sa.String(50),
        nullable=False,
        comment="Version Number (Semantic Versioning, e.g., v1.0.0)",
    ),
    sa.Column("run_id", sa.String(191), nullable=False, server_default=sa.text("''")),
    sa.Column(
        "status",
        sa.String(20),
        nullable=False,
        server_default=sa.text("'PENDING'"),
        comment="Status: PENDING|RUNNING|COMPLETED|FAILED|DEPRECATED",
    ),
    sa.Column(
        "path",
        sa.String(CHECKPOINT_PATH_LENGTH),
        nullable=False,
        comment="Storage Path (e.g., s3://bucket/path/checkpoint.ckpt)",
    ),
    sa.Column(
        "source",
        sa.String(50),
        server_default=_NULL,
        comment="Source (e.g., User Upload/Training Generated/System Migration)",
    ),
    sa.Column(
        "operator",
        sa.String(50),
        server_default=_NULL,
        comment="Operator (User ID or System Account)",
    ),
    sa.Column("remark", sa.String(1024), server_default=_NULL, comment="Remark (Free text format)"),
    sa.Column("config_yaml", sa.Text, comment="Full Deployment Config (Encrypted Storage)"),
    sa.Column(
        "created_at", sa.TIMESTAMP, nullable=False, server_default=_NOW, comment="Created At"
    ),
    sa.Column(
        "updated_at",
        sa.TIMESTAMP,
        nullable=False,
        server_default=_touched_at_default(),
        onupdate=sa.func.current_timestamp(),
        comment="Last Updated At",
    ),
    sa.Column("deleted_at", sa.TIMESTAMP, server_default=_NULL, comment="Soft Delete Time"),
    sa.Column("started_at", sa.TIMESTAMP, server_default=_NULL, comment="Started At"),
    sa.Column("finished_at", sa.TIMESTAMP, server_default=_NULL, comment="Finished At"),
    sa.Index("idx_status", "status"),
    sa.Index("idx_created_at", "created_at"),
    sa.Index("idx_updated_at", "updated_at"),
    mysql_engine="InnoDB",
    mysql_default_charset="utf8mb4",
    mysql_collate="utf8mb4_0900_ai_ci",
    comment="Model Checkpoint Table (Records training checkpoints and deployment versions)",
)
