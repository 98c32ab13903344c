"""Raw connections to a desktop's ports, for clients that speak to them directly.

The guest server is reached as it is. A port that the desktop publishes is too; any other through the
guest server, whose route ``/tunnel/PORT`` carries the bytes both ways in a web socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from dart_gui.env.desktop.address import Address
from dart_gui.env.sockets import Socket

CHUNK = 1 << 16


class Pipe(Protocol):
    """Bytes to and from one end. Methods raise ``OSError`` where the other side is gone."""

    ends_by_halves: bool  # what it reads may end while it is still written to

    async def read(self) -> bytes:
        """Empty at the end."""
        ...

    async def write(self, chunk: bytes) -> None: ...

    async def end(self) -> None:
        """Nothing more is written."""
        ...


class StreamPipe:
    ends_by_halves = True

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> bytes:
        return await self._reader.read(CHUNK)

    async def write(self, chunk: bytes) -> None:
        self._writer.write(chunk)
        await self._writer.drain()

    async def end(self) -> None:
        with suppress(OSError):
            self._writer.write_eof()


class SocketPipe:
    ends_by_halves = False

    def __init__(self, socket: Socket) -> None:
        self._socket = socket

    async def read(self) -> bytes:
        message = await self._socket.receive()
        return message.data if message.type is aiohttp.WSMsgType.BINARY else b""

    async def write(self, chunk: bytes) -> None:
        await self._socket.send_bytes(chunk)

    async def end(self) -> None:
        await self._socket.close()


async def join(one: Pipe, other: Pipe, *, goes_on: Callable[[], bool] = lambda: True) -> None:
    """Until both directions have ended, or one that takes the other with it. ``goes_on`` is asked
    for each chunk."""
    pumps = [
        asyncio.create_task(_pump(one, other, goes_on)),
        asyncio.create_task(_pump(other, one, goes_on)),
    ]
    halves = one.ends_by_halves and other.ends_by_halves
    when = asyncio.ALL_COMPLETED if halves else asyncio.FIRST_COMPLETED
    try:
        await asyncio.wait(pumps, return_when=when)
    finally:
        for pump in pumps:
            pump.cancel()
        ends = await asyncio.gather(*pumps, return_exceptions=True)
    for end in ends:  # a side that is gone is how it ends; anything else is a fault of ours
        if isinstance(end, Exception) and not isinstance(end, OSError):
            raise end


async def _pump(source: Pipe, goal: Pipe, goes_on: Callable[[], bool]) -> None:
    try:
        while (chunk := await source.read()) and goes_on():
            await goal.write(chunk)
    finally:
        await goal.end()


@asynccontextmanager
async def dial(address: Address, port: int | None) -> AsyncIterator[Pipe]:
    """A connection to ``port`` of a desktop; to its guest server for None.

    Raises:
        OSError: nothing listens there, or the desktop is gone.
    """
    if port is not None and port not in address.ports:
        async with _tunnel(address, port) as pipe:
            yield pipe
        return
    opened = await _connect(address, port)
    try:
        yield StreamPipe(*opened)
    finally:
        opened[1].close()


def _connect(
    address: Address, port: int | None
) -> Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    if port is None and address.socket is not None:
        return asyncio.open_unix_connection(str(address.socket))
    parts = urlsplit(address.url if port is None else address.ports[port])
    return asyncio.open_connection(parts.hostname, parts.port)


@asynccontextmanager
async def _tunnel(address: Address, port: int) -> AsyncIterator[Pipe]:
    path = None if address.socket is None else str(address.socket)
    connector = aiohttp.TCPConnector() if path is None else aiohttp.UnixConnector(path)
    async with aiohttp.ClientSession(connector=connector, headers=address.headers) as session:
        try:
            socket = await session.ws_connect(f"{address.url}/tunnel/{port}", max_msg_size=0)
        except aiohttp.ClientError as error:
            raise ConnectionError(f"port {port} of the desktop: {error}") from None
        try:
            yield SocketPipe(socket)
        finally:
            await socket.close()


async def serve(request: web.Request, port: int) -> web.StreamResponse:
    """The guest's end of ``dial``, to ``port`` of its own loopback interface.

    Raises:
        OSError: nothing listens there.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        await join(StreamPipe(reader, writer), SocketPipe(socket))
    finally:
        writer.close()
    return socket
