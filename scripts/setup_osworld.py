"""OSWorld's getters and metrics, in a virtual environment of their own (``.venv-osworld``).

Prints the path of its ``python`` on standard output, and nothing where it cannot be had; then standard
error says what is missing, and the tests that need it count as skipped. ``desktop-env`` pins torch,
transformers, easyocr and clients of five clouds, which its getters and metrics do not need: what they
do need is the list in ``constraints-osworld.txt``, and it is installed without dependency resolution.
"""

from __future__ import annotations

import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-osworld"
LOCK = ROOT / "constraints-osworld.txt"
STAMP = VENV / "dart-gui-osworld"
MIN_DISK_GB = 2.0
PROBE = (
    "import sys, types; sys.modules['easyocr'] = types.ModuleType('easyocr'); "
    "import desktop_env.evaluators.metrics, desktop_env.evaluators.getters"
)


class Unavailable(Exception):
    """What is missing."""


def say(text: str) -> None:
    print(f"setup_osworld: {text}", file=sys.stderr, flush=True)


def main() -> int:
    with LOCK.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            ensure()
        except Unavailable as error:
            say(f"no evaluator here: {error}")
            return 0
    print(VENV / "bin" / "python")
    return 0


def ensure() -> None:
    wanted = hashlib.sha256(f"{ROOT}\n".encode() + LOCK.read_bytes() + Path(__file__).read_bytes())
    if STAMP.exists() and STAMP.read_text() == wanted.hexdigest():
        return
    if sys.version_info[:2] != (3, 11):
        raise Unavailable(f"Python {platform.python_version()}; the pinned builds are for 3.11")
    free = shutil.disk_usage(ROOT).free / 2**30
    if free < MIN_DISK_GB and not VENV.exists():
        raise Unavailable(f"{free:.1f} GB free at {ROOT}; it takes {MIN_DISK_GB:g} GB")
    started_at = time.monotonic()
    say(f"installing desktop-env into {VENV} (1 GB on disk; minutes the first time)")
    shutil.rmtree(VENV, ignore_errors=True)
    run(sys.executable, "-m", "venv", str(VENV), what="making the virtual environment")
    pip = (str(VENV / "bin" / "python"), "-m", "pip", "install", "-qq", "--no-deps")
    quiet = ("--disable-pip-version-check", "--root-user-action", "ignore")
    run(*pip, *quiet, "-r", str(LOCK), what="installing the metrics")
    # Each evaluation is a process that imports them all: without their compiled form a minute on a slow
    # machine, and pip leaves it out where PYTHONDONTWRITEBYTECODE is set.
    run(
        str(VENV / "bin" / "python"), "-m", "compileall", "-qq", str(VENV / "lib"), what="compiling"
    )
    run(str(VENV / "bin" / "python"), "-c", PROBE, what="importing the metrics")
    STAMP.write_text(wanted.hexdigest())
    say(f"the metrics are ready after {time.monotonic() - started_at:.0f} s")


def run(*command: str, what: str) -> None:
    # standard output is for the path alone
    code = subprocess.run(command, stdout=2, check=False).returncode
    if code != 0:
        raise Unavailable(f"{what} failed with exit code {code}; its own message is above")


if __name__ == "__main__":
    sys.exit(main())
