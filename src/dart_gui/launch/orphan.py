"""No child outlives its supervisor, even one that is killed with ``kill -9``.

Linux sends the child SIGTERM when its parent dies (``PR_SET_PDEATHSIG``), so that it ends in order;
a thread watches the parent as well, and ends the whole process group when order takes too long.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

SUPERVISOR_PID = "DART_SUPERVISOR_PID"
"""Environment variable by which a supervisor tells its children who it is."""

_PR_SET_PDEATHSIG = 1


def end_with_supervisor(*, grace_s: float = 20.0, poll_s: float = 1.0) -> None:
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
        # Only a group that this process leads is its own to kill.
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
