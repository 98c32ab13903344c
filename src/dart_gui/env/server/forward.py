"""A TCP port per lease that leads to its guest server, for clients that insist on one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from dart_gui.env.providers.protocol import Desktop

_CHUNK = 1 << 16


class Forwarder:
    """Admits connections from one address only: the guest API itself asks for no token.

    ``touch`` is called for what passes, and ends the connection where it says False.
    """

    def __init__(
        self, desktop: Desktop, *, host: str, admit: str, touch: Callable[[], bool]
    ) -> None:
        self._desktop = desktop
        self._host = host
        self._admit = admit
        self._touch = touch
        self._server: asyncio.Server | None = None
        self._pipes: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """The port that was chosen."""
        self._server = await asyncio.start_server(self._serve, self._host, 0)
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
                await self._connect(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the desktop or the client went away
        finally:
            self._pipes.discard(task)
            writer.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(
            str(self._desktop.address.socket)
        )
        try:
            await asyncio.gather(self._pump(reader, inner_writer), self._pump(inner_reader, writer))
        finally:
            inner_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (chunk := await reader.read(_CHUNK)) and self._touch():
            writer.write(chunk)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()
