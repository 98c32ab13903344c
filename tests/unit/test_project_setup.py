"""The set-up's decisions, without installing anything."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dart_gui.env.browser.chromium import find_chromium

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # `setup` is too common a name to stay in sys.modules.
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.delitem(sys.modules, "setup", raising=False)
    return importlib.import_module("setup")


@pytest.fixture
def browser(setup: ModuleType) -> ModuleType:
    return setup.setup_browser  # type: ignore[no-any-return]


def report(version: str, needs: list[str]) -> dict[str, Any]:
    metadata = {"name": "torch", "version": version, "requires_dist": needs}
    return {"install": [{"metadata": metadata}]}


@pytest.mark.parametrize(
    ("version", "needs", "is_cpu"),
    [
        ("2.13.0+cpu", ["sympy"], True),
        ("2.13.0", ["sympy", "jinja2"], True),  # as on macOS
        ("2.13.0", ["sympy", 'nvidia-cudnn-cu13==9.1; platform_system == "Linux"'], False),
        ("2.13.0+cu130", ["cuda-bindings"], False),
    ],
)
def test_a_cpu_build_is_told_by_what_it_needs(
    setup: ModuleType, version: str, needs: list[str], is_cpu: bool
) -> None:
    assert setup.reports_cpu_build(report(version, needs)) is is_cpu


@pytest.mark.parametrize(
    ("gpu", "cpu_builds", "requirement", "takes_index"),
    [
        (True, {"torch==2.13.0"}, "torch==2.13.0", False),
        (False, {"torch==2.13.0"}, "torch==2.13.0", False),
        (False, {"torch==2.13.0+cpu"}, "torch==2.13.0+cpu", True),
        (False, set(), "torch==2.13.0", False),
    ],
)
def test_which_torch_is_taken(
    setup: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gpu: bool,
    cpu_builds: set[str],
    requirement: str,
    takes_index: bool,
) -> None:
    monkeypatch.setattr(setup, "has_gpu", lambda: gpu)
    monkeypatch.setattr(setup, "is_cpu_build", lambda wanted, _index: wanted in cpu_builds)
    taken, index = setup.choose_torch("torch==2.13.0")
    assert (taken, bool(index)) == (requirement, takes_index)
    assert capsys.readouterr().out.startswith("setup: ")


def test_torch_is_pinned(setup: ModuleType) -> None:
    assert setup.torch_pin().startswith("torch==")


def test_set_up_is_current_until_an_input_changes(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("before")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch(mode=0o755)
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "CONSTRAINTS", tmp_path / "constraints.txt")
    monkeypatch.setattr(setup, "PYTHON", python)
    monkeypatch.setattr(setup, "STAMP", tmp_path / ".venv" / "stamp.json")
    before = setup.fingerprint()
    assert not setup.is_current(before)

    setup.write_stamp({"fingerprint": before, "browser": str(python)})
    assert setup.is_current(before)
    (tmp_path / "constraints.txt").write_text("after")
    assert not setup.is_current(setup.fingerprint())

    setup.write_stamp({"fingerprint": before, "browser": str(tmp_path / "gone")})
    assert not setup.is_current(before)


def test_an_environment_made_elsewhere_is_not_kept(setup: ModuleType, tmp_path: Path) -> None:
    venv = tmp_path / ".venv"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "other")],
        check=True,
    )
    shutil.move(tmp_path / "other", venv)
    assert not setup.made_here(venv)


def test_without_python_311_one_paragraph_says_so(tmp_path: Path) -> None:
    for name in ("sh", "dirname", "cat"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")  # a Python of another version
    (tmp_path / "python3").chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", str(ROOT / "scripts" / "setup")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("setup: no Python 3.11 was found")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("system", "uid", "names"),
    [
        ("debian", 0, ["Debian's package (apt-get)", "Playwright's download"]),
        (
            "debian",
            1000,
            ["Playwright's download", "Debian's packages, unpacked into .browser/"],
        ),
        ("ubuntu", 0, ["Playwright's download"]),
        ("ubuntu", 1000, ["Playwright's download"]),
    ],
)
def test_the_ways_to_a_browser(
    browser: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    uid: int,
    names: list[str],
) -> None:
    monkeypatch.delenv(browser.IGNORE_SYSTEM, raising=False)
    monkeypatch.setattr(browser.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(browser, "os_id", lambda: system)
    monkeypatch.setattr(browser.os, "geteuid", lambda: uid)
    assert [name for name, _ in browser.ways(Path("python"), Path("root"))] == names


def test_each_way_is_tried_until_a_browser_paints(
    browser: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def refuse() -> None:
        tried.append("first")
        raise subprocess.CalledProcessError(100, "apt-get", output="Get:1\nE: no such package\n")

    monkeypatch.setattr(
        browser, "ways", lambda *_: [("one", refuse), ("two", lambda: tried.append("second"))]
    )
    monkeypatch.setattr(
        browser, "usable", lambda *_: "/found" if tried == ["first", "second"] else None
    )
    said: list[str] = []
    assert browser.ensure(Path("python"), Path("root"), said.append) == "/found"
    assert "one did not work: E: no such package" in said


def test_no_browser_at_all_is_explained(
    browser: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser, "ways", lambda *_: [])
    monkeypatch.setattr(browser, "usable", lambda *_: None)
    with pytest.raises(browser.BrowserFailed, match="DART_CHROMIUM"):
        browser.ensure(Path("python"), Path("root"), lambda _: None)


@pytest.mark.parametrize(
    ("glyphs", "paints"),
    [
        ({"illi": b"narrow", "WMMW": b"wide"}, True),
        ({"illi": b"box", "WMMW": b"box"}, False),  # no fonts: every letter is the same box
        ({"illi": None, "WMMW": None}, False),  # it does not start
    ],
)
def test_a_browser_without_fonts_is_refused(
    browser: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    glyphs: dict[str, bytes | None],
    paints: bool,
) -> None:
    monkeypatch.setattr(browser, "screenshot", lambda _executable, _folder, text: glyphs[text])
    assert browser.paints_text("chromium") is paints


def test_absolute_font_links_of_unpacked_packages_are_mended(
    browser: ModuleType, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    available = root / "usr" / "share" / "fontconfig" / "conf.avail"
    enabled = root / "etc" / "fonts" / "conf.d"
    available.mkdir(parents=True)
    enabled.mkdir(parents=True)
    for name in ("10-hinting-slight.conf", "60-latin.conf"):
        (available / name).write_text(name)
    (enabled / "60-latin.conf").symlink_to("/usr/share/fontconfig/conf.avail/60-latin.conf")
    browser.repair_font_links(enabled, root)
    moved = root.rename(tmp_path / "moved") / "etc" / "fonts" / "conf.d"
    assert {path.name: path.read_text() for path in moved.iterdir()} == {
        "10-hinting-slight.conf": "10-hinting-slight.conf",
        "60-latin.conf": "60-latin.conf",
    }


def test_the_wrapper_finds_its_own_folder(browser: ModuleType, tmp_path: Path) -> None:
    chromium = tmp_path / "root" / "usr" / "lib" / "chromium" / "chromium-headless-shell"
    chromium.parent.mkdir(parents=True)
    chromium.write_text('#!/bin/sh\necho "$LD_LIBRARY_PATH $FONTCONFIG_FILE $*"\n')
    chromium.chmod(0o755)
    (tmp_path / "root" / "usr" / "lib" / "x86_64-linux-gnu").mkdir()
    browser.write_wrapper(tmp_path)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    wrapper = moved / "chromium-headless-shell"
    done = subprocess.run(
        [str(wrapper), "--headless", "a b"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    libraries = moved / "root" / "usr" / "lib" / "x86_64-linux-gnu"
    assert done.stdout.strip() == f"{libraries} {moved / 'fonts.conf'} --headless a b"


def test_the_runtime_finds_the_wrapper(browser: ModuleType, tmp_path: Path) -> None:
    chromium = tmp_path / "root" / "usr" / "lib" / "chromium" / "chromium-headless-shell"
    chromium.parent.mkdir(parents=True)
    chromium.touch(mode=0o755)
    browser.write_wrapper(tmp_path)
    nowhere = {"PATH": "", "HOME": str(tmp_path / "home")}
    found = find_chromium(environ=nowhere, browser_dir=tmp_path)
    assert found.path == tmp_path / "chromium-headless-shell"
