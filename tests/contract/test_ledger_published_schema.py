"""The two published tables: equal to the published DDL on MySQL, as far as it goes on SQLite."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.schema import CreateIndex, CreateTable

from dart_gui.data.ledger import Ledger
from dart_gui.data.schema import checkpoint, rollout_run

PUBLISHED = (Path(__file__).parents[1] / "data" / "published_schema.sql").read_text()
TABLES = [rollout_run, checkpoint]


@dataclass(frozen=True)
class ColumnDef:
    name: str
    type: str
    nullable: bool
    default: str | None
    comment: str | None
    charset: str | None
    collation: str | None
    on_update: bool
    auto_increment: bool


def parse_column(line: str) -> ColumnDef:
    comment = re.search(r"COMMENT '([^']*)'", line)
    rest = re.sub(r"COMMENT '[^']*'", "", line).rstrip(", ")
    name, type_, rest = rest.split(maxsplit=2) if rest.count(" ") > 1 else (*rest.split(), "")
    on_update = "ON UPDATE CURRENT_TIMESTAMP" in rest
    rest = rest.replace("ON UPDATE CURRENT_TIMESTAMP", "")
    default = re.search(r"DEFAULT ('[^']*'|\S+)", rest)
    charset = re.search(r"CHARACTER SET (\S+)", rest)
    collation = re.search(r"COLLATE (\S+)", rest)
    return ColumnDef(
        name=name.strip("`"),
        type=type_.lower().replace("integer", "int"),
        nullable="NOT NULL" not in rest,
        default=default and default[1],
        comment=comment and comment[1],
        charset=charset and charset[1],
        collation=collation and collation[1],
        on_update=on_update,
        auto_increment="AUTO_INCREMENT" in rest,
    )


def columns_of(ddl: str) -> list[ColumnDef]:
    body = ddl[ddl.index("(") + 1 :]
    lines = [line.strip() for line in body.splitlines()]
    keys = ("PRIMARY", "UNIQUE", "KEY", "CONSTRAINT", ")")
    return [parse_column(line) for line in lines if line and not line.startswith(keys)]


def names_in(text: str) -> tuple[str, ...]:
    return tuple(name.strip(" `") for name in text.split(","))


def keys_of(ddl: str) -> set[tuple[str, str, tuple[str, ...]]]:
    ddl = ddl.replace("`", "")
    found = {("primary", "", names_in(m[1])) for m in re.finditer(r"PRIMARY KEY \(([^)]*)\)", ddl)}
    unique = r"UNIQUE KEY (\w+) \(([^)]*)\)|CONSTRAINT (\w+) UNIQUE \(([^)]*)\)"
    for m in re.finditer(unique, ddl):
        found.add(("unique", m[1] or m[3], names_in(m[2] or m[4])))
    plain = r"(?<!PRIMARY )(?<!UNIQUE )KEY (\w+) \(([^)]*)\)|CREATE INDEX (\w+) ON \w+ \(([^)]*)\)"
    for m in re.finditer(plain, ddl):
        found.add(("key", m[1] or m[3], names_in(m[2] or m[4])))
    return found


def options_of(ddl: str) -> dict[str, str]:
    tail = ddl[ddl.rindex("ENGINE=") :].replace("COLLATE ", "COLLATE=")
    options = dict(re.findall(r"(ENGINE|DEFAULT CHARSET|COLLATE)=(\w+)", tail))
    comment = re.search(r"COMMENT='([^']*)'", tail)
    return {**options, "COMMENT": comment[1] if comment else ""}


def published(table: sa.Table) -> str:
    found = re.search(rf"CREATE TABLE `{table.name}`.*?;", PUBLISHED, re.DOTALL)
    assert found
    return found[0]


def compiled(table: sa.Table) -> str:
    return str(CreateTable(table).compile(dialect=mysql.dialect())).strip()


def compiled_indexes(table: sa.Table) -> str:
    return "\n".join(str(CreateIndex(i).compile(dialect=mysql.dialect())) for i in table.indexes)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_mysql_columns_equal_the_published_ones(table):
    expected = columns_of(published(table))
    assert len(expected) == {"rollout_run": 12, "checkpoint": 15}[table.name]
    assert columns_of(compiled(table)) == expected


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_the_mysql_keys_and_options_equal_the_published_ones(table):
    expected = keys_of(published(table))
    assert len(expected) == 4
    assert keys_of(compiled(table) + "\n" + compiled_indexes(table)) == expected
    assert options_of(compiled(table)) == options_of(published(table))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_sqlite_has_names_order_nullability_and_defaults(table, tmp_path):
    conn = open_sqlite(tmp_path)
    rows = conn.exec_driver_sql(f"PRAGMA table_info({table.name})").all()
    got = [(row.name, not row.notnull, row.dflt_value) for row in rows]
    expected = [(c.name, c.nullable, c.default) for c in columns_of(published(table))]
    assert got == expected
    conn.close()


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_sqlite_has_the_uniques_and_indexes(table, tmp_path):
    conn = open_sqlite(tmp_path)
    inspector = sa.inspect(conn)
    got = {("primary", "", tuple(inspector.get_pk_constraint(table.name)["constrained_columns"]))}
    for unique in inspector.get_unique_constraints(table.name):
        got.add(("unique", unique["name"], tuple(unique["column_names"])))
    for index in inspector.get_indexes(table.name):
        if not index["unique"]:
            got.add(("key", index["name"], tuple(index["column_names"])))
    assert got == keys_of(published(table))
    conn.close()


def test_a_row_with_defaults_only(tmp_path):
    conn = open_sqlite(tmp_path)
    conn.execute(
        sa.insert(rollout_run).values(trajectory_id="t", task_id="k", trace_id="x", run_id="r")
    )
    row = conn.execute(sa.select(rollout_run)).one()
    assert (row.id, row.used, row.reward, row.split_dir) == (1, 0, None, None)
    assert row.create_at is not None
    conn.close()


def open_sqlite(tmp_path) -> sa.Connection:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    Ledger(url, run_id="r", clock=lambda: 0.0).close()
    return sa.create_engine(url, poolclass=sa.NullPool).connect()
