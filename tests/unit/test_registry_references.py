"""What can be named in the configuration, and what is said where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dart_gui import registry
from dart_gui.agent.agent import Agent
from dart_gui.agent.registry import agent_class
from dart_gui.errors import ConfigError
from dart_gui.registry import Registry

THINGS = Registry("thing", "a.thing", "dart_gui.test_things", {"pi": "math:pi", "e": "math:e"})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules and of an installed package that declares entry points."""
    info = tmp_path / "thing_pack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thing-pack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dart_gui.test_things]\nours = thing_pack:Holder.thing\npi = thing_pack:Holder.thing\n"
        "bad = thing_bad:thing\n"
    )
    (tmp_path / "thing_pack.py").write_text("class Holder:\n    thing = 42\n")
    (tmp_path / "thing_bad.py").write_text("raise ValueError('no licence')\n")
    (tmp_path / "thing_lacks.py").write_text("import numpyy\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_name_is_built_in_or_an_entry_point(site: Path) -> None:
    assert THINGS.load("pi") == pytest.approx(3.14159, abs=1e-5)
    assert THINGS.load("ours") == 42
    assert THINGS.known()["pi"] == "math:pi"  # nobody takes a name of ours
    assert set(THINGS.known()) == {"pi", "e", "ours", "bad"}


def test_what_is_not_named_is_not_imported(site: Path) -> None:
    THINGS.known()
    THINGS.load("ours")
    assert "thing_bad" not in sys.modules


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("ourz", r"there is no thing 'ourz'; did you mean ours\?.* are: bad, e, ours, pi"),
        ("bad", r"a.thing = 'bad': importing thing_bad failed: ValueError: no licence"),
        ("thing_lacks:x", "importing thing_lacks failed: ModuleNotFoundError: No module .*numpyy"),
        ("no_such.module:x", r"there is no module no_such: install .* module.py:object"),
        ("math.nothing:x", "there is no module math.nothing"),
        ("math:pie", r"math has no 'pie'; did you mean pi\?"),
        ("thing_pack:Holder.thong", r"has no 'thong'; did you mean thing\?"),
        ("no/such.py:x", r"there is no file .*/no/such.py"),
        ("math:", "math has no ''"),
        (":x", "importing  failed: ValueError"),
    ],
)
def test_an_error_says_what_is_wrong(site: Path, reference: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        THINGS.load(reference)


def test_a_file_is_loaded_once_and_finds_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "things_beside.py").write_text("VALUE = object()\n")
    mine = tmp_path / "mine.py"
    mine.write_text("from things_beside import VALUE\n")
    path = list(sys.path)
    try:
        first = THINGS.load(f"{mine}:VALUE")
        assert THINGS.load(f"{mine}:VALUE") is first
    finally:
        sys.path[:] = path


def test_a_file_that_fails_is_read_again(tmp_path: Path) -> None:
    mine = tmp_path / "later_right.py"
    mine.write_text("VALUE = 1 / 0\n")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        THINGS.load(f"{mine}:VALUE")
    mine.write_text("VALUE = 17\n")
    assert THINGS.load(f"{mine}:VALUE") == 17


def test_a_reference_to_a_file_holds_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert registry.absolute("a/b.py:X") == f"{tmp_path}/a/b.py:X"
    assert registry.absolute("/a/b.py:X") == "/a/b.py:X"
    assert registry.absolute("a.b:X") == "a.b:X"
    assert registry.absolute("miniwob") == "miniwob"


def test_an_agent_is_a_subclass_of_ours(tmp_path: Path) -> None:
    assert agent_class("ui-tars") is Agent
    with pytest.raises(ConfigError, match=r"did you mean ui-tars\?"):
        agent_class("uitars")
    with pytest.raises(ConfigError, match="expected a subclass of"):
        agent_class("pathlib:Path")


def test_a_file_is_found_without_the_working_folder_on_the_path(tmp_path: Path) -> None:
    """As by the installed command, which does not have it there."""
    (tmp_path / "mine.py").write_text("VALUE = 3\n")
    code = (
        "from dart_gui.registry import Registry; "
        "print(Registry('t', 'a.t', 'none', {}).load('mine.py:VALUE'))"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.stdout.strip() == "3"
