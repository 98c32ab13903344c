"""Finding a Chromium. Nothing is downloaded here: that is set-up's work."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dart_gui.config import EnvConfig
from dart_gui.errors import SetupError, boundary

Kind = Literal["headless-shell", "chromium"]

ENV_VAR = "DART_CHROMIUM"
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
_WRAPPER = "chromium-headless-shell"  # set-up leaves it beside the packages that it unpacked
_DOWNLOADED = (
    "chromium_headless_shell-*/chrome-*/*headless*shell",
    "chromium-*/chrome-*/chrome",
)
_REPOSITORY = Path(__file__).resolve().parents[4]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChromiumInfo:
    path: Path
    kind: Kind
    source: str  # where it was found, in words


def find_chromium(
    configured: str = "",
    *,
    environ: Mapping[str, str] | None = None,
    browser_dir: Path = _REPOSITORY / ".browser",
) -> ChromiumInfo:
    """The first of: ``configured``, $DART_CHROMIUM, PATH, ``browser_dir``, Playwright's download.

    ``browser_dir`` holds the Debian packages that set-up unpacked, and a script that runs the browser
    with their libraries and fonts. A headless shell is looked for
    before a full Chromium: it takes half the processor time and a third of the memory.

    Raises:
        SetupError: there is none, or the one that was named is not an executable file.
    """
    environ = os.environ if environ is None else environ
    for named, source in ((configured, "env.browser"), (environ.get(ENV_VAR, ""), f"${ENV_VAR}")):
        if named:
            return _named(named, source)
    for info in _candidates(environ, browser_dir):
        if _is_executable(info.path):
            return info
    raise SetupError(
        "no Chromium was found on this machine. Install one of: `apt install "
        "chromium-headless-shell` (Debian, preferred), `apt install chromium`, or `python -m "
        "playwright install chromium-headless-shell`; or name an executable with env.browser or "
        f"${ENV_VAR}."
    )


def describe_chromium(config: EnvConfig) -> str:
    """The browser of ``config``, and where it was found. Raises ``SetupError`` where there is none."""
    found = find_chromium(config.browser)
    return f"{found.path} ({found.kind}, found by {found.source})"


def version_of(info: ChromiumInfo) -> str:
    """What ``--version`` says, e.g. ``Chromium 156.0.1``.

    Raises:
        SetupError: it does not run on this machine.
    """
    with boundary(SetupError, f"running {info.path} --version"):
        shown = subprocess.run(
            [info.path, "--version"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    return shown.stdout.strip()


def _named(named: str, source: str) -> ChromiumInfo:
    path = Path(shutil.which(named) or named).expanduser()
    if not _is_executable(path):
        raise SetupError(
            f"{source} names the browser {named}, which is not an executable file. Give the path "
            "of a chromium or chromium-headless-shell executable, or leave it empty to have one "
            "looked for on this machine."
        )
    return _info(path, source)


def _candidates(environ: Mapping[str, str], browser_dir: Path) -> Iterator[ChromiumInfo]:
    for name in _NAMES:
        if found := shutil.which(name, path=environ.get("PATH", "")):
            yield _info(Path(found), "PATH")
    yield _info(browser_dir / _WRAPPER, str(browser_dir))
    home = Path(environ.get("HOME", "/nonexistent"))
    downloads = Path(environ.get("PLAYWRIGHT_BROWSERS_PATH") or home / ".cache/ms-playwright")
    for pattern in _DOWNLOADED:
        for path in sorted(downloads.glob(pattern), reverse=True):
            yield _info(path, "Playwright's download")


def _info(path: Path, source: str) -> ChromiumInfo:
    kind: Kind = "headless-shell" if "headless" in path.name else "chromium"
    return ChromiumInfo(path=path.absolute(), kind=kind, source=source)


def _is_executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)
