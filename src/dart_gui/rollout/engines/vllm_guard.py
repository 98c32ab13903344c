"""Runs a command in a process group of its own, and ends all of it when standard input closes.

A file of the standard library alone, run as ``python -I vllm_guard.py GRACE_S COMMAND...``: the pipe
on its standard input closes when the worker goes, whatever the way, and with it goes a server that
would otherwise keep its GPU. A server that has lost its engine may linger in part; the group goes whole.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1


def _die_with_guard() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_group(group: int, *, grace_s: float) -> None:
    """SIGTERM, then SIGKILL for what is left after ``grace_s``."""
    deadline = time.monotonic() + grace_s
    try:
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < deadline:
            time.sleep(0.05)
            os.killpg(group, 0)
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def main(grace_s: float, command: list[str]) -> int:
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_guard,
    )

    def watch() -> None:
        while os.read(0, 4096):
            pass
        end_group(child.pid, grace_s=grace_s)

    threading.Thread(target=watch, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: end_group(child.pid, grace_s=grace_s))
    status = child.wait()
    end_group(child.pid, grace_s=grace_s)  # what outlives the leader of the group
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
