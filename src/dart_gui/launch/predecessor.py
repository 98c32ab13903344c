"""One process of a module per run: a successor waits until its predecessor is gone.

The modules of a supervisor that was killed take a moment to end, and the run may be resumed within
it. Beside its predecessor a runner would take over episodes that still run, a trainer would train
the same groups, a rollout service would not fit the GPU.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from dart_gui.errors import SetupError

TIMEOUT_S = 30.0
TICK_S = 0.1


def wait_for_predecessor(
    run_dir: Path,
    module: str,
    *,
    timeout_s: float = TIMEOUT_S,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Hold the run's lock of ``module``; the descriptor, which the kernel closes with the process.

    Raises:
        SetupError: another process still holds it after ``timeout_s``.
    """
    descriptor = os.open(run_dir / f"{module}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    deadline = monotonic() + timeout_s
    while not _is_taken(descriptor):
        if monotonic() >= deadline:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise SetupError(
                f"another {module} (process {owner}) works on {run_dir} and did not end within "
                f"{timeout_s:g} s: two on one run are refused. Stop that one first, or start a run "
                "of its own"
            )
        sleep(TICK_S)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _is_taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
