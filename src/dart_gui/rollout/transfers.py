"""Screenshots on their way to another process: each once, whoever needs it first."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping

MAX_REMEMBERED = 100_000


class Transfers:
    """Remembers what the other side has, and shares a transfer that is under way.

    ``put`` sends one image (its hash, its PNG); what it raises reaches all who wait for the image.
    """

    def __init__(self, put: Callable[[str, bytes], Awaitable[None]]) -> None:
        self._send = put
        self._known: OrderedDict[str, None] = OrderedDict()
        self._putting: dict[str, asyncio.Task[None]] = {}

    async def put_unknown(self, images: Mapping[str, bytes]) -> None:
        """Returns when the other side has all of ``images``, as far as is known."""
        for key, png in images.items():
            if key in self._known:
                self._known.move_to_end(key)
                continue
            task = self._putting.get(key)
            if task is None:
                task = asyncio.create_task(self._put(key, png))
                task.add_done_callback(_retrieve)
                self._putting[key] = task
            await asyncio.shield(task)

    def forget(self, keys: Iterable[str]) -> None:
        """The other side says that it does not have them."""
        for key in keys:
            self._known.pop(key, None)

    async def close(self) -> None:
        putting = list(self._putting.values())
        for task in putting:
            task.cancel()
        await asyncio.gather(*putting, return_exceptions=True)

    async def _put(self, key: str, png: bytes) -> None:
        try:
            await self._send(key, png)
            self._known[key] = None
            if len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)
        finally:
            del self._putting[key]


def _retrieve(task: asyncio.Task[None]) -> None:
    """Whoever waited for the transfer may be gone: its failure must not count as unnoticed."""
    if not task.cancelled():
        task.exception()
