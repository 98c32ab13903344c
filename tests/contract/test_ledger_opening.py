"""What opening a ledger refuses, and with which advice."""

import sqlite3

import pytest

from dart_gui.config import CurationConfig, DataConfig
from dart_gui.data.manager import DataManager
from dart_gui.errors import ConfigError, DataError


@pytest.fixture
def opened(tmp_path):
    managers = []

    def open_one(url=None, **data):
        manager = DataManager(
            url or f"sqlite:///{tmp_path}/ledger.sqlite",
            str(tmp_path / "blobs"),
            run_id="r",
            config=DataConfig(**data),
            curation=CurationConfig(),
            groups_per_step=1,
        )
        managers.append(manager)
        return manager

    yield open_one
    for manager in managers:
        manager.close()


def test_a_newer_ledger_is_refused_with_advice(opened, tmp_path):
    opened()
    conn = sqlite3.connect(tmp_path / "ledger.sqlite")
    conn.execute("UPDATE ledger_meta SET value = '99'")
    conn.commit()
    conn.close()
    with pytest.raises(DataError, match=r"schema version 99, this dart-gui knows 2: open it with"):
        opened()


def test_a_file_that_is_no_database(opened, tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match=r"file is not a database.*SQLite database"):
        opened()


@pytest.mark.parametrize(
    "url", ["nonsense", "sqlite://", "nosuchdb://host/x", "sqlite:///:memory:"]
)
def test_a_url_that_cannot_serve(url, opened):
    with pytest.raises(ConfigError, match=r"data\.ledger"):
        opened(url)


def test_the_folder_of_the_ledger_cannot_be_made(opened, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made"):
        opened(f"sqlite:///{tmp_path}/file/ledger.sqlite")


def test_more_uses_than_one_are_refused(opened):
    with pytest.raises(ConfigError, match=r"data\.max_uses = 2"):
        opened(max_uses=2)


def test_without_a_sampler_nothing_is_planned(opened):
    with opened() as manager, pytest.raises(DataError, match="without a task sampler"):
        manager.next_episode(0)
