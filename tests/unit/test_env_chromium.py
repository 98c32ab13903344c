"""Where a browser is looked for, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from dart_gui.env.browser.chromium import ChromiumInfo, find_chromium
from dart_gui.errors import SetupError


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    return {
        "configured": executable(tmp_path / "given" / "my-chrome"),
        "variable": executable(tmp_path / "named" / "chromium-headless-shell"),
        "path": executable(tmp_path / "bin" / "chromium"),
        "unpacked": executable(tmp_path / ".browser/chromium-headless-shell"),
        "download": executable(
            tmp_path / "ms/chromium_headless_shell-1200/chrome-linux/headless_shell"
        ),
    }


def find(places: dict[str, Path], tmp_path: Path, have: set[str]) -> ChromiumInfo:
    for name in places.keys() - have:
        places[name].unlink()
    environ = {
        "PATH": str(tmp_path / "bin"),
        "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path / "ms"),
        **({"DART_CHROMIUM": str(places["variable"])} if "variable" in have else {}),
    }
    configured = str(places["configured"]) if "configured" in have else ""
    return find_chromium(configured, environ=environ, browser_dir=tmp_path / ".browser")


ORDER = ["configured", "variable", "path", "unpacked", "download"]


@pytest.mark.parametrize("first", range(len(ORDER)))
def test_the_order(places: dict[str, Path], tmp_path: Path, first: int) -> None:
    assert find(places, tmp_path, set(ORDER[first:])).path == places[ORDER[first]]


def test_a_headless_shell_goes_before_a_full_browser(
    places: dict[str, Path], tmp_path: Path
) -> None:
    shell = executable(tmp_path / "bin" / "chromium-headless-shell")
    environ = {"PATH": str(tmp_path / "bin")}
    found = find_chromium(environ=environ)
    assert (found.path, found.kind) == (shell, "headless-shell")
    shell.unlink()
    assert find_chromium(environ=environ).kind == "chromium"


def test_none_says_what_to_install(places: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="apt install chromium-headless-shell"):
        find(places, tmp_path, set())


def test_a_wrong_name_is_not_passed_over(places: dict[str, Path], tmp_path: Path) -> None:
    plain = tmp_path / "notes.txt"
    plain.write_text("no program")
    with pytest.raises(SetupError, match=r"env\.browser names the browser .*notes\.txt"):
        find_chromium(str(plain))
    with pytest.raises(SetupError, match=r"\$DART_CHROMIUM names the browser /no/such"):
        find_chromium(environ={"DART_CHROMIUM": "/no/such"})
