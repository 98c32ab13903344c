"""A loopback port that leads to one desktop, for OSWorld's getters, which know no other way to it than
``http://<vm_ip>:<port>/...``: to its guest server, to Chrome's debugger and to VLC's interface.

They also take a desktop that does not answer for one without the file: the door remembers that it did
not answer, or could not.
"""

from __future__ import annotations

import base64
import json
import re
import secrets

import aiohttp
from aiohttp import web

from dart_gui.env.desktop.client import GuestClient, Relayed
from dart_gui.env.desktop.ports import CHROME
from dart_gui.env.desktop.screen import ACTION
from dart_gui.env.sockets import wants_socket
from dart_gui.errors import EnvError

MAX_BODY = 512 << 20
MAX_SAID = 300
_LOOPBACK = "127.0.0.1"
_NOT_YOURS = "this door is for one evaluation"
_SOCKET_URL = re.compile(rb"ws://[^/\"]+/")
_GONE = (410, 501, 502, 503, 504)
"""Of an env server in between, for a desktop gone; 501 of a guest that lacks what the route takes."""
_LOOKS = frozenset({"/screenshot", "/accessibility", "/terminal", "/screen_size", "/platform"})
"""Nothing that an agent does in its desktop makes one of these fail."""
_TIMED_OUT = re.compile(r"timed out after [\d.]+ seconds|Execution timeout")
"""What OSWorld's guest server and ours say of a command that they ended."""


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

    def beside(self, port: int) -> str:
        """What to say for the number of another port of the desktop: the getters put it between a colon
        and a path, so it may have one itself. The password is in it, as one that a getter names for
        VLC takes the place of that in ``host``."""
        return f"{self.port}/{self._secret}/{port}"

    async def __aenter__(self) -> Door:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", f"/{self._secret}/{{port:\\d+}}{{path:/.*}}", self._relay_port)
        app.router.add_post("/action", self._act)
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

    def _knows(self, request: web.Request) -> bool:
        expected = base64.b64encode(f"door:{self._secret}".encode()).decode()
        return secrets.compare_digest(request.headers.get("Authorization", ""), f"Basic {expected}")

    async def _act(self, request: web.Request) -> web.Response:
        """A typed action, which not every guest has a route for."""
        if not self._knows(request):
            return web.Response(status=401, text=_NOT_YOURS)
        try:
            action_error = await self._client.act(ACTION.validate_json(await request.read()))
        except EnvError as error:
            self.failure = self.failure or str(error)
            return web.Response(status=502, text=str(error))
        return web.json_response({"action_error": action_error})

    async def _relay(self, request: web.Request) -> web.Response:
        if not self._knows(request):
            return web.Response(status=401, text=_NOT_YOURS)
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
        self.failure = self.failure or _failure(request.path, answer)
        headers = {"Content-Type": answer.content_type} if answer.content_type else None
        return web.Response(status=answer.status, body=answer.body, headers=headers)

    async def _relay_port(self, request: web.Request) -> web.StreamResponse:
        """Where no program listens is for the getter to judge: the agent may have ended it."""
        port = int(request.match_info["port"])
        path = request.raw_path.removeprefix(f"/{self._secret}/{port}")
        if wants_socket(request):
            return await self._relay_socket(request, port, path.partition("?")[0])
        try:
            kept = ("Authorization", "Content-Type")
            answer = await self._client.relay_port(
                port,
                request.method,
                path,
                body=await request.read(),
                headers={name: request.headers[name] for name in kept if name in request.headers},
                timeout_s=self._answer_s,
            )
        except EnvError as error:
            self.failure = self.failure or str(error)
            return web.Response(status=502, text=str(error))
        if not answer.is_port:
            self.failure = self.failure or f"this desktop does not hand out its port {port}"
        body = answer.body
        if port == CHROME:  # it tells where its sockets are by the address that it was asked at
            ours = f"ws://{_LOOPBACK}:{self.beside(port)}/"
            body = _SOCKET_URL.sub(ours.encode(), body)
        headers = {"Content-Type": answer.content_type} if answer.content_type else None
        return web.Response(status=answer.status, body=body, headers=headers)

    async def _relay_socket(self, request: web.Request, port: int, path: str) -> web.StreamResponse:
        try:
            return await self._client.relay_port_socket(port, request, path)
        except (aiohttp.ClientError, TimeoutError) as error:
            return web.Response(status=502, text=f"{type(error).__name__}: {error}")


def _failure(path: str, answer: Relayed) -> str | None:
    """Why an answer says nothing about what the agent did, which the getters take for nothing done."""
    failed = answer.status in _GONE or (answer.status != 200 and path in _LOOKS)
    said = _said(answer.body) if answer.status >= 400 else ""
    if failed or (answer.status == 500 and _TIMED_OUT.search(said)):
        return f"{path} was answered with {answer.status}: {said}"
    return None


def _said(body: bytes) -> str:
    """Of an error in OSWorld's shape the message; ``output`` is that of ``/run_bash_script``."""
    try:
        told = json.loads(body)
        text = str(told.get("message") or told.get("output"))
    except (ValueError, AttributeError):
        text = body.decode("utf-8", "replace")
    return text[-MAX_SAID:]
