"""A TCP port per lease and port of its desktop, for clients that insist on one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from dart_gui.env.desktop.address import Address
from dart_gui.env.desktop.tunnel import StreamPipe, dial, join


class Forwarder:
    """Leads to ``port`` of a desktop, to its guest server for None. Admits connections from one address
    only: what listens there asks for no token.

    ``touch`` is called for what passes, and ends the connection where it says False.
    """

    def __init__(
        self,
        address: Address,
        port: int | None,
        *,
        admit: str,
        touch: Callable[[], bool],
    ) -> None:
        self._address = address
        self._port = port
        self._admit = admit
        self._touch = touch
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int = 0) -> int:
        """The port that is listened on: ``port``, or for 0 one that is free.

        Raises:
            OSError: it is taken.
        """
        self._server = await asyncio.start_server(self._serve, host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        try:
            if writer.get_extra_info("peername")[0] == self._admit:
                # The desktop or the client may go away, or nothing may listen there.
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    async with dial(self._address, self._port) as inner:
                        await join(StreamPipe(reader, writer), inner, goes_on=self._touch)
        finally:
            self._pipes.discard(task)
            writer.close()
