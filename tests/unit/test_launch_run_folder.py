from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from dart_gui.config import Config
from dart_gui.errors import ConfigError, SetupError
from dart_gui.launch import run_folder

NOON = time.mktime((2026, 1, 31, 12, 0, 5, 0, 0, -1))


def test_a_run_id_sorts_by_time() -> None:
    assert run_folder.new_run_id(NOON, "ab12") == "20260131-120005-ab12"
    assert run_folder.new_run_id(NOON) != run_folder.new_run_id(NOON)


def test_a_new_run_has_its_configuration_and_a_secret_token(tmp_path: Path) -> None:
    folder = run_folder.create(Config(), tmp_path / "runs" / "r1")
    assert folder.load_config() == Config()
    assert stat.S_IMODE(folder.token.stat().st_mode) == 0o600
    assert len(folder.token.read_text()) >= 32
    other = run_folder.create(Config(), tmp_path / "runs" / "r2")
    assert other.token.read_text() != folder.token.read_text()


def test_latest_is_the_newest_run(tmp_path: Path) -> None:
    run_folder.create(Config(), tmp_path / "r1")
    run_folder.create(Config(), tmp_path / "r2")
    assert os.readlink(tmp_path / "latest") == "r2"
    assert run_folder.find("latest", str(tmp_path)).run_id == "r2"
    assert run_folder.find("r1", str(tmp_path)).path == tmp_path / "r1"
    assert run_folder.find(str(tmp_path / "r1"), "elsewhere").run_id == "r1"


def test_a_run_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot create the run folder"):
        run_folder.create(Config(), tmp_path / "file" / "r1")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_such_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no run"):
        run_folder.find("latest", str(tmp_path))
    run_folder.create(Config(), tmp_path / "r1")
    with pytest.raises(ConfigError, match=r"the run 'r7': the runs in .* are: r1\."):
        run_folder.find("r7", str(tmp_path))


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    config = Config.model_validate({"run": {"dir": str(tmp_path)}})
    run_folder.create(config, tmp_path / "r1")
    with pytest.raises(ConfigError, match="exists already"):
        run_folder.place_for(config, name="r1", run_dir=None, now=NOON)
    assert run_folder.place_for(config, name="r2", run_dir=None, now=NOON) == tmp_path / "r2"


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "latest"])
def test_a_name_stays_within_the_runs_folder(name: str) -> None:
    with pytest.raises(ConfigError):
        run_folder.place_for(Config(), name=name, run_dir=None, now=NOON)


def test_two_supervisors_of_one_run_are_refused(tmp_path: Path) -> None:
    folder = run_folder.create(Config(), tmp_path / "r1")
    with (
        run_folder.locked(folder),
        pytest.raises(SetupError, match=f"another supervisor \\(process {os.getpid()}\\)"),
        run_folder.locked(folder),
    ):
        pytest.fail("held twice")
    with run_folder.locked(folder):
        pass


def test_a_status_that_is_not_there_or_broken_is_empty(tmp_path: Path) -> None:
    folder = run_folder.create(Config(), tmp_path / "r1")
    assert folder.status("trainer") == {}
    folder.set_status("trainer", {"train_step": 3})
    assert folder.status("trainer") == {"train_step": 3}
    (folder.path / "status" / "trainer.json").write_text("{")
    assert folder.status("trainer") == {}
