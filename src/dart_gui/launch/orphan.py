"""No child outlives its supervisor, even one that is killed with ``kill -9``.

Linux sends the child SIGTERM when its parent dies (``PR_SET_PDEATHSIG``), so that it ends in order;
a thread watches the parent as well, and ends the child with all that it started when order takes
longer than a few seconds: the next supervisor may be on its way, and each module survives a kill.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

SUPERVISOR_PID = "DART_SUPERVISOR_PID"
"""Environment variable by which a supervisor tells its children who it is."""

_PR_SET_PDEATHSIG = 1


def end_with_supervisor(*, grace_s: float = 3.0, poll_s: float = 0.5) -> None:
    """Tie this process to the supervisor named in the environment; without one, do nothing."""
    parent = os.environ.get(SUPERVISOR_PID)
    if not parent:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # The parent may have died before prctl took effect: the watch sees that too.
    watch = _Watch(int(parent), grace_s=grace_s, poll_s=poll_s)
    threading.Thread(target=watch.run, name="supervisor-watch", daemon=True).start()


class _Watch:
    def __init__(self, parent: int, *, grace_s: float, poll_s: float) -> None:
        self._parent = parent
        self._grace_s = grace_s
        self._poll_s = poll_s

    def run(self) -> None:
        while os.getppid() == self._parent:
            time.sleep(self._poll_s)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(self._grace_s)
        # The browser leads a process group of its own, so the group alone would not do.
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """The processes below ``pid``, as /proc tells; those that end meanwhile may be missing."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in children.read_text().split()]
    return [*found, *(below for child in found for below in descendants(child))]
