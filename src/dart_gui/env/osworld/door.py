"""A loopback port that leads to one desktop's guest server, for OSWorld's getters, which know no other
way to a desktop than ``http://<vm_ip>:<port>/...``.

They also take a desktop that does not answer for one without the file: the door remembers that it did
not answer.
"""

from __future__ import annotations

import base64
import secrets

from aiohttp import web

from dart_gui.env.desktop.client import GuestClient
from dart_gui.errors import EnvError

MAX_BODY = 512 << 20
_LOOPBACK = "127.0.0.1"


class Door:
    """Open it, give ``host`` and ``port`` to the getters, close it; then look at ``failure``."""

    def __init__(self, client: GuestClient, *, answer_s: float) -> None:
        self._client = client
        self._answer_s = answer_s
        self._secret = secrets.token_urlsafe(16)
        self._runner: web.AppRunner | None = None
        self.port = 0
        self.failure: str | None = None

    @property
    def host(self) -> str:
        """With a password in front, which ``requests`` sends: other users of this machine reach
        loopback too, and the guest API asks nobody who he is."""
        return f"door:{self._secret}@{_LOOPBACK}"

    async def __aenter__(self) -> Door:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", "/{path:.*}", self._relay)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, _LOOPBACK, 0)
        await site.start()
        self.port = int(self._runner.addresses[0][1])
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _relay(self, request: web.Request) -> web.Response:
        expected = base64.b64encode(f"door:{self._secret}".encode()).decode()
        if not secrets.compare_digest(
            request.headers.get("Authorization", ""), f"Basic {expected}"
        ):
            return web.Response(status=401, text="this door is for one evaluation")
        try:
            answer = await self._client.relay(
                request.method,
                request.raw_path,
                body=await request.read(),
                content_type=request.headers.get("Content-Type"),
                timeout_s=self._answer_s,
            )
        except EnvError as error:
            self.failure = self.failure or str(error)
            return web.Response(status=502, text=str(error))
        if answer.status in (410, 502, 503, 504):  # of an env server in between, for a desktop gone
            self.failure = self.failure or f"{request.path} was answered with {answer.status}"
        headers = {"Content-Type": answer.content_type} if answer.content_type else None
        return web.Response(status=answer.status, body=answer.body, headers=headers)
