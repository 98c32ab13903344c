"""The requests of a page, counted, so that what it shows does not depend on how fast they were."""

from __future__ import annotations

import asyncio

from playwright.async_api import Page, Request

_ENDLESS = ("eventsource", "websocket")


class Traffic:
    """Watches ``page`` from now on."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._open: set[Request] = set()
        self._none_open = asyncio.Event()
        self._none_open.set()
        page.on("request", self._begin)
        page.on("requestfinished", self._end)
        page.on("requestfailed", self._end)

    async def quiet(self) -> None:
        """Wait until no request is under way, one that an answer led to included.

        A stream of events and a socket are not waited for: they have no end.
        """
        while True:
            await self._none_open.wait()
            # The events of the browser arrive in order: what was asked for before is known after.
            await self._page.evaluate("() => __dart.nextFrame()")
            if not self._open:
                return

    def _begin(self, request: Request) -> None:
        if request.resource_type not in _ENDLESS:
            self._open.add(request)
            self._none_open.clear()

    def _end(self, request: Request) -> None:
        self._open.discard(request)
        if not self._open:
            self._none_open.set()
