"""Low CPU priority for this process and all that it starts.

On Linux with autogroup scheduling a nice value counts within a session only, and a process that
leads a session of its own (a rollout worker, a browser) competes as if it had none: the session's
own value has to be set too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

EVERY_S = 1.0
_PROC = Path("/proc")


@contextlib.asynccontextmanager
async def gentle(nice: int) -> AsyncIterator[None]:
    """Lower this process, which cannot be undone, and while the context lasts the sessions of its
    descendants, as they appear."""
    os.nice(nice)
    keeping = asyncio.create_task(_keep(nice))
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])


async def _keep(nice: int) -> None:
    while True:
        lower_sessions(nice)
        await asyncio.sleep(EVERY_S)


def lower_sessions(nice: int) -> None:
    """Of the descendants that are not in our session; ours is that of the whole run."""
    ours = os.getsid(0)
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError, ValueError):  # it has ended, or the next look does it
            group = _PROC / str(pid) / "autogroup"
            if os.getsid(pid) != ours and int(group.read_text().split()[-1]) != nice:
                group.write_text(str(nice))


def descendants(root: int) -> Iterator[int]:
    """Process ids below ``root``; none where there is no ``/proc``."""
    children: dict[int, list[int]] = {}
    for path in _PROC.glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name of a process stands in parentheses, and may hold spaces and parentheses.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        yield from below
        todo += below
