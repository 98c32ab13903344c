"""Handing a web socket on to another server."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import aiohttp
from aiohttp import web

Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse
OPEN_S = 30.0


def wants_socket(request: web.Request) -> bool:
    return request.headers.get("Upgrade", "").lower() == "websocket"


async def relay_socket(
    request: web.Request, session: aiohttp.ClientSession, url: str
) -> web.WebSocketResponse:
    """Until one of the two ends it; the request's query goes along. Raises ``aiohttp.ClientError``
    where ``url`` gives no socket."""
    # The session's limit is one on a request: a socket stays open.
    async with asyncio.timeout(OPEN_S) as opening:
        async with session.ws_connect(
            url, params=request.query, max_msg_size=0, timeout=_CLOSE
        ) as inner:
            opening.reschedule(None)
            outer = web.WebSocketResponse(max_msg_size=0)
            await outer.prepare(request)
            pumps = [
                asyncio.create_task(_pump(inner, outer)),
                asyncio.create_task(_pump(outer, inner)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                await outer.close()
    return outer


_CLOSE = aiohttp.ClientWSTimeout(ws_close=5.0)


async def _pump(source: Socket, goal: Socket) -> None:
    with suppress(ConnectionError):  # the other end is gone
        async for message in source:
            if message.type is aiohttp.WSMsgType.TEXT:
                await goal.send_str(message.data)
            elif message.type is aiohttp.WSMsgType.BINARY:
                await goal.send_bytes(message.data)
