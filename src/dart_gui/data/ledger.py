"""The ledger: an SQL database that several processes use at the same time.

SQLite runs in WAL mode and a write transaction takes the write lock at its beginning (``BEGIN
IMMEDIATE``): a transaction that read first and locked later would fail with "database is locked"
instead of waiting. On MySQL the row of the run is locked instead. So the write transactions of a
run happen one after another, and what a transaction reads stays true until it commits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from dart_gui.data import schema
from dart_gui.errors import ConfigError, DataError

BUSY_TIMEOUT_S = 30.0


class Ledger:
    """The rows of one run in the database at ``url`` (an SQLAlchemy URL), created where missing.

    Raises:
        ConfigError: the URL or its driver is unknown.
        DataError: the database cannot be opened, or a newer version of dart-gui made it.
    """

    def __init__(self, url: str, *, run_id: str, clock: Callable[[], float]) -> None:
        self.run_id = run_id
        self.clock = clock
        self._engine = _create_engine(url)
        self._is_sqlite = self._engine.dialect.name == "sqlite"
        self._name = self._engine.url.render_as_string(hide_password=True)
        try:
            self._prepare()
        except DataError:
            self.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A write transaction; it commits at the end, or leaves no trace."""
        with self._explained(), self._engine.begin() as conn:
            if not self._is_sqlite:
                run = schema.training_run.c.run_id
                conn.execute(sa.select(run).where(run == self.run_id).with_for_update())
            yield conn

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A read transaction: one state of the ledger, and no lock."""
        with self._explained(), self._engine.connect() as conn:
            conn = conn.execution_options(dart_read_only=True)
            with conn.begin():
                yield conn

    def close(self) -> None:
        self._engine.dispose()

    def _prepare(self) -> None:
        # Looking and creating in one write transaction: two processes may start together.
        with self._explained(), self._engine.begin() as conn:
            version = self._schema_version(conn)
            if version is None:
                schema.metadata.create_all(conn)
                conn.execute(
                    sa.insert(schema.ledger_meta).values(
                        name="schema_version", value=str(schema.SCHEMA_VERSION)
                    )
                )
            elif version < schema.SCHEMA_VERSION:
                self._upgrade(conn, version)
            elif version > schema.SCHEMA_VERSION:
                raise DataError(
                    f"the ledger {self._name} has schema version {version}, this dart-gui knows "
                    f"{schema.SCHEMA_VERSION}: open it with the version of dart-gui that made it, "
                    "or set data.ledger to a new one"
                )
            self._register_run(conn)

    @staticmethod
    def _upgrade(conn: sa.Connection, version: int) -> None:
        for reached in range(version + 1, schema.SCHEMA_VERSION + 1):
            for statement in schema.UPGRADES[reached]:
                conn.exec_driver_sql(statement)
        schema.metadata.create_all(conn)
        name = schema.ledger_meta.c.name
        current = sa.update(schema.ledger_meta).where(name == "schema_version")
        conn.execute(current.values(value=str(schema.SCHEMA_VERSION)))

    def _register_run(self, conn: sa.Connection) -> None:
        runs = schema.training_run
        if conn.scalar(sa.select(runs.c.run_id).where(runs.c.run_id == self.run_id)) is None:
            conn.execute(sa.insert(runs).values(run_id=self.run_id, created_at=self.clock()))

    def _schema_version(self, conn: sa.Connection) -> int | None:
        if not sa.inspect(conn).has_table(schema.ledger_meta.name):
            return None
        meta = schema.ledger_meta
        value = conn.scalar(sa.select(meta.c.value).where(meta.c.name == "schema_version"))
        if value is None:
            return None
        if not value.isdigit():
            raise DataError(f"the ledger {self._name} has the schema version {value!r}")
        return int(value)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as error:
            raise DataError(
                f"the ledger {self._name} failed: {error.orig}. Check that the file is an SQLite "
                "database that can be written and that its disk is not full (or that the database "
                "server answers); nothing was written"
            ) from error


def _create_engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except exc.ArgumentError as error:
        raise ConfigError(
            f"data.ledger = {url!r} is not an SQLAlchemy URL, such as "
            "sqlite:////home/me/ledger.sqlite"
        ) from error
    options: dict[str, Any] = {}
    is_sqlite = parsed.get_backend_name() == "sqlite"
    if is_sqlite:
        _make_folder(parsed)
        options = {"connect_args": {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}}
    try:
        engine = sa.create_engine(parsed, **options)
    except (exc.NoSuchModuleError, ImportError) as error:
        shown = parsed.render_as_string(hide_password=True)
        raise ConfigError(
            f"data.ledger = {shown!r} needs a driver that is missing: {error}"
        ) from error
    if is_sqlite:
        sa.event.listen(engine, "connect", _on_connect)
        sa.event.listen(engine, "begin", _on_begin)
    return engine


def _make_folder(url: sa.URL) -> None:
    if url.database in (None, "", ":memory:"):
        raise ConfigError(
            "data.ledger names no file, such as sqlite:////home/me/ledger.sqlite: the runner and "
            "the trainer could not share it"
        )
    folder = Path(str(url.database)).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the folder {folder} of the ledger cannot be made: {error.strerror or error}. "
            "Set data.ledger to a place that can be written"
        ) from error


def _on_connect(dbapi_connection: Any, record: Any) -> None:
    # None leaves BEGIN to us; the driver's own would take the write lock too late.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _on_begin(conn: sa.Connection) -> None:
    read_only = conn.get_execution_options().get("dart_read_only", False)
    conn.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")
