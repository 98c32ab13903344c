"""Virtual environments beside ours, for what pins other versions of what we use. Plain standard library.

A set-up script makes one from its list of pins, once for each list and script, and prints the path of
a program in it; where it cannot be had it prints nothing, and standard error says what is missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP_QUIETLY = ("--disable-pip-version-check", "--root-user-action", "ignore")


class Unavailable(Exception):
    """What is missing."""


def say(script: Path, text: str) -> None:
    print(f"{script.stem}: {text}", file=sys.stderr, flush=True)


def provide(
    script: Path, lock: Path, ensure: Callable[[], None], *, program: Path, what: str
) -> int:
    """Run ``ensure``, one process at a time, and print the path of ``program``; the exit code."""
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            ensure()
        except Unavailable as error:
            say(script, f"no {what} here: {error}")
            return 0
    print(program)
    return 0


def stamp_of(script: Path, lock: Path) -> str:
    """Changes with the place, the list and the script."""
    text = f"{ROOT}\n".encode() + lock.read_bytes() + script.read_bytes()
    return hashlib.sha256(text + Path(__file__).read_bytes()).hexdigest()


def check_python_and_disk(venv: Path, *, min_disk_gb: float) -> None:
    if sys.version_info[:2] != (3, 11):
        raise Unavailable(f"Python {platform.python_version()}; the pinned builds are for 3.11")
    free = shutil.disk_usage(ROOT).free / 2**30
    if free < min_disk_gb and not venv.exists():
        raise Unavailable(f"{free:.1f} GB free at {ROOT}; it takes {min_disk_gb:g} GB")


def run(*command: str, what: str) -> None:
    # standard output is for the path alone
    code = subprocess.run(command, stdout=2, check=False).returncode
    if code != 0:
        raise Unavailable(f"{what} failed with exit code {code}; its own message is above")
