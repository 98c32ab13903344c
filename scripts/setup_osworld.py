"""OSWorld's getters and metrics, in a virtual environment of their own (``.venv-osworld``).

Prints the path of its ``python`` on standard output, and nothing where it cannot be had; then standard
error says what is missing, and the tests that need it count as skipped. ``desktop-env`` pins torch,
transformers, easyocr and clients of five clouds, which its getters and metrics do not need: what they
do need is the list in ``constraints-osworld.txt``, and it is installed without dependency resolution.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from private_venv import PIP_QUIETLY, ROOT, check_python_and_disk, provide, run, say, stamp_of

SCRIPT = Path(__file__).resolve()
VENV = ROOT / ".venv-osworld"
LOCK = ROOT / "constraints-osworld.txt"
STAMP = VENV / "dart-gui-osworld"
MIN_DISK_GB = 2.0
PROBE = (
    "import sys, types; sys.modules['easyocr'] = types.ModuleType('easyocr'); "
    "import desktop_env.evaluators.metrics, desktop_env.evaluators.getters"
)


def main() -> int:
    return provide(SCRIPT, LOCK, ensure, program=VENV / "bin" / "python", what="evaluator")


def ensure() -> None:
    wanted = stamp_of(SCRIPT, LOCK)
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    check_python_and_disk(VENV, min_disk_gb=MIN_DISK_GB)
    started_at = time.monotonic()
    say(SCRIPT, f"installing desktop-env into {VENV} (1 GB on disk; minutes the first time)")
    shutil.rmtree(VENV, ignore_errors=True)
    run(sys.executable, "-m", "venv", str(VENV), what="making the virtual environment")
    pip = (str(VENV / "bin" / "python"), "-m", "pip", "install", "-qq", "--no-deps")
    run(*pip, *PIP_QUIETLY, "-r", str(LOCK), what="installing the metrics")
    # Each evaluation is a process that imports them all: without their compiled form a minute on a slow
    # machine, and pip leaves it out where PYTHONDONTWRITEBYTECODE is set.
    run(
        str(VENV / "bin" / "python"), "-m", "compileall", "-qq", str(VENV / "lib"), what="compiling"
    )
    run(str(VENV / "bin" / "python"), "-c", PROBE, what="importing the metrics")
    STAMP.write_text(wanted)
    say(SCRIPT, f"the metrics are ready after {time.monotonic() - started_at:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
