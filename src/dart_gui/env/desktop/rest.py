"""Whether the programs of a desktop have come to rest, by what the kernel says of their threads.

A screen that does not change says little on a busy machine: a program that waits for a processor shows
nothing, and has not yet saved what it was told to save. Here it counts as at work.

Our guest server imports it. To a guest that has OSWorld's routes only it goes as text: ``python3 -c TEXT
SECONDS LIMIT`` is the program at the end. It must run by itself, on Python 3.8.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.02
PROC = Path("/proc")
AT_WORK = ("R", "D")
"""Runs or waits for a processor, which the kernel does not tell apart; waits for a disk."""


def at_work(proc: Path = PROC) -> bool:
    """Whether a thread of any process but this one is."""
    own = str(os.getpid())
    for process in os.listdir(proc):
        if process.isdigit() and process != own and _at_work(proc / process / "task"):
            return True
    return False


def _at_work(tasks: Path) -> bool:
    try:
        for thread in os.listdir(tasks):
            # After the name, which stands in brackets and may hold anything.
            state = (tasks / thread / "stat").read_bytes().rpartition(b") ")[2][:1]
            if state.decode() in AT_WORK:
                return True
    except OSError:  # it ended since the folder was listed
        pass
    return False


def await_rest(
    rest_s: float,
    limit_s: float,
    *,
    is_at_work: Callable[[], bool] = at_work,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Until no program was seen at work for ``rest_s``; False where that was not within ``limit_s``."""
    began = worked_at = clock()
    while True:
        if is_at_work():
            worked_at = clock()
        now = clock()
        if now - worked_at >= rest_s:
            return True
        if now - began >= limit_s:
            return False
        sleep(POLL_S)


if __name__ == "__main__":
    print(json.dumps(await_rest(float(sys.argv[1]), float(sys.argv[2]))))
