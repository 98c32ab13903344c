"""The guest API from outside the desktop."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp
from aiohttp import web

from dart_gui.env.desktop.address import Address
from dart_gui.env.desktop.ports import AUTHORIZATION, MARK
from dart_gui.env.desktop.published import NoPictureError, PublishedGuest, decode
from dart_gui.env.desktop.screen import ACTION, WindowQuery
from dart_gui.env.desktop.watch import Condition
from dart_gui.env.sockets import relay_socket
from dart_gui.errors import EnvError
from dart_gui.types import Action

ANSWER_S = 30.0
"""For a request that waits for nothing in the desktop; one that does adds its own limit."""
KEEP_S = 15.0
MAX_TEXT = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Screenshot:
    png: bytes
    grab_ms: float
    encode_ms: float
    settle_ms: float  # 0 where it was not waited for
    settled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    returncode: int
    output: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Relayed:
    """An answer as the guest gave it, whatever its status."""

    status: int
    body: bytes
    content_type: str | None
    is_port: bool = False  # of a port, or of a guest that has the route to it


class GuestClient:
    """Talks to one guest server. Whatever goes wrong raises ``EnvError``.

    A guest without our own routes, which is asked once, gets the same by those of OSWorld. Close it: it
    keeps connections open.
    """

    def __init__(self, address: Address, *, what: str = "the desktop") -> None:
        self.address = address
        self._what = what
        self._session: aiohttp.ClientSession | None = None
        self._has_own_routes: bool | None = None  # None before it was asked
        self._published = PublishedGuest(
            picture=self._picture,
            execute=self.execute,
            size=self._screen_size,
        )

    async def health(self) -> dict[str, Any]:
        return await self.wait_ready(timeout_s=ANSWER_S)

    async def wait_ready(self, *, timeout_s: float) -> dict[str, Any]:
        """``health`` as soon as it answers, or of a guest without it the size of a screenshot. A socket
        that listens queues the request until then.

        Raises:
            EnvError: not within ``timeout_s``, or the desktop ended.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        async with self._request(
            "GET", "/health", accept=(200, 404), timeout_s=timeout_s
        ) as response:
            self._has_own_routes, answer = response.status == 200, await response.read()
        if self._has_own_routes:
            return _object(answer, "/health")
        try:
            async with asyncio.timeout_at(deadline):  # over all that are asked for in vain
                frame = decode(await self._published.screenshot())
        except TimeoutError:
            raise EnvError(f"{self._what} gave no picture within {timeout_s:g} s") from None
        return {"status": "ready", "width": frame.width, "height": frame.height}

    async def _is_published(self) -> bool:
        if self._has_own_routes is None:
            await self.health()
        return not self._has_own_routes

    async def screenshot(
        self,
        *,
        stable_s: float = 0.0,
        react_s: float = 0.0,
        timeout_s: float = 0.0,
        cursor: bool = True,
    ) -> Screenshot:
        """The screen, once it has reacted to the newest action (``react_s`` for that) and nothing
        has changed on it for ``stable_s``, or after ``timeout_s``."""
        if stable_s and await self._is_published():
            return await self._settled_by_published(
                Condition(stable_s=stable_s, react_s=react_s, timeout_s=timeout_s)
            )
        if self._has_own_routes is False:
            png = await self._published.screenshot()
            return Screenshot(png=png, grab_ms=0, encode_ms=0, settle_ms=0, settled=True)
        query: dict[str, str] = {} if cursor else {"cursor": "0"}
        if stable_s:
            waits = {"stable_ms": stable_s, "react_ms": react_s, "timeout_ms": timeout_s}
            query |= {name: f"{1e3 * seconds:g}" for name, seconds in waits.items()}
        async with self._request(
            "GET", "/screenshot", params=query, timeout_s=ANSWER_S + timeout_s
        ) as response:
            png, headers = await response.read(), response.headers
        return Screenshot(
            png=png,
            grab_ms=float(headers.get("X-Grab-Ms", 0)),
            encode_ms=float(headers.get("X-Encode-Ms", 0)),
            settle_ms=float(headers.get("X-Settle-Ms", 0)),
            settled=headers.get("X-Settled", "1") == "1",
        )

    async def act(self, action: Action) -> str | None:
        """Carry out an action; why it was refused, if it was."""
        if await self._is_published():
            return await self._published.act(action)
        body = ACTION.dump_python(action, mode="json")
        answer = _object(await self._call("POST", "/action", body=body), "/action")
        error = answer.get("action_error")
        return None if error is None else str(error)

    async def execute(
        self, command: str | list[str], *, shell: bool = False, timeout_s: float = 120.0
    ) -> CommandResult:
        body = {"command": command, "shell": shell, "timeout": timeout_s}
        answer = _object(
            await self._call("POST", "/execute", body=body, timeout_s=ANSWER_S + timeout_s),
            "/execute",
        )
        return CommandResult(
            returncode=int(answer["returncode"]),
            output=str(answer["output"]),
            error=str(answer["error"]),
        )

    async def launch(self, command: str | list[str], *, shell: bool = False) -> None:
        await self._call("POST", "/setup/launch", body={"command": command, "shell": shell})

    async def setup(self, route: str, body: dict[str, Any], *, timeout_s: float = ANSWER_S) -> str:
        """POST to a route of the guest API with a JSON object; the answer's text."""
        return (await self._call("POST", route, body=body, timeout_s=timeout_s)).decode(
            "utf-8", "replace"
        )

    async def relay(
        self,
        method: str,
        route: str,
        *,
        body: bytes = b"",
        content_type: str | None = None,
        timeout_s: float = ANSWER_S,
    ) -> Relayed:
        """Hand a request on, and its answer back; only a guest that does not answer is an error."""
        headers = {"Content-Type": content_type} if content_type else None
        async with self._request(
            method, route, data=body, headers=headers, accept=None, timeout_s=timeout_s
        ) as response:
            return Relayed(
                status=response.status,
                body=await response.read(),
                content_type=response.headers.get("Content-Type"),
            )

    async def relay_port(
        self,
        port: int,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Mapping[str, str],
        timeout_s: float = ANSWER_S,
    ) -> Relayed:
        """``relay`` to a program of the desktop that speaks HTTP at ``port``; ``headers`` are for it.

        Where nothing listens the status is 502; ``EnvError`` is the guest that does not answer.
        """
        published = port in self.address.ports
        sent = dict(headers)
        if not published and "Authorization" in sent:
            sent[AUTHORIZATION] = sent.pop("Authorization")
        try:
            async with self._request(
                method,
                f"/port/{port}{path}",
                data=body,
                headers=sent,
                accept=None,
                timeout_s=timeout_s,
            ) as response:
                return Relayed(
                    status=response.status,
                    body=await response.read(),
                    content_type=response.headers.get("Content-Type"),
                    is_port=published or MARK in response.headers,
                )
        except EnvError as error:
            if not published:
                raise
            return Relayed(
                status=502, body=str(error).encode(), content_type="text/plain", is_port=True
            )

    async def relay_port_socket(
        self, port: int, request: web.Request, path: str
    ) -> web.StreamResponse:
        """A web socket to a program of the desktop, until it ends. Raises ``aiohttp.ClientError``."""
        return await relay_socket(request, self._open(), self.address.url_of(f"/port/{port}{path}"))

    async def wait(
        self,
        *,
        window_name: str | None = None,
        strict: bool = False,
        by_class: bool = False,
        stable_s: float = 0.1,
        min_colors: int = 0,
        timeout_s: float = 10.0,
    ) -> float:
        """Seconds until the screen met the condition.

        Raises:
            EnvError: it did not within ``timeout_s``; the text says what was missing.
        """
        if await self._is_published():
            query = WindowQuery(name=window_name or "", strict=strict, by_class=by_class)
            condition = Condition(
                stable_s=stable_s,
                window=None if window_name is None else query,
                min_colors=min_colors,
                timeout_s=timeout_s,
            )
            outcome = await self._published.wait(condition)
            if not outcome.met:
                raise EnvError(f"{self._what}: after {outcome.waited_s:.1f} s {outcome.missing}")
            return outcome.waited_s
        body: dict[str, Any] = {
            "stable_ms": 1e3 * stable_s,
            "min_colors": min_colors,
            "timeout_ms": 1e3 * timeout_s,
        }
        if window_name is not None:
            body |= {"window_name": window_name, "strict": strict, "by_class": by_class}
        answer = await self._call("POST", "/wait", body=body, timeout_s=ANSWER_S + timeout_s)
        return float(_object(answer, "/wait")["waited_ms"]) / 1e3

    async def await_rest(self, *, rest_s: float, timeout_s: float) -> bool:
        """Until no program of the desktop has worked, or waited for a processor, for ``rest_s``; False
        where that was not within ``timeout_s``."""
        if await self._is_published():
            return await self._published.await_rest(rest_s, timeout_s)
        body = {"rest_ms": 1e3 * rest_s, "timeout_ms": 1e3 * timeout_s}
        answer = await self._call("POST", "/rest", body=body, timeout_s=ANSWER_S + timeout_s)
        return bool(_object(answer, "/rest")["is_resting"])

    async def read_file(self, path: str) -> bytes | None:
        """The bytes of a file; None where there is none."""
        form = aiohttp.FormData({"file_path": path})
        async with self._request("POST", "/file", data=form, accept=(200, 404)) as response:
            return await response.read() if response.status == 200 else None

    async def write_file(self, path: str, content: bytes) -> None:
        form = aiohttp.FormData()
        form.add_field("file_path", path)
        form.add_field("file_data", io.BytesIO(content), filename="file")
        async with self._request("POST", "/setup/upload", data=form) as response:
            await response.read()

    async def windows(self) -> list[dict[str, Any]]:
        if await self._is_published():
            return [asdict(window) for window in await self._published.windows()]
        found = json.loads(await self._call("GET", "/windows"))
        return list(found)

    async def cursor_position(self) -> tuple[int, int]:
        x, y = json.loads(await self._call("GET", "/cursor_position"))
        return int(x), int(y)

    async def _picture(self) -> bytes:
        """Of a guest with published routes."""
        async with self._request("GET", "/screenshot", accept=None) as response:
            body = await response.read()
        if response.status == 200:
            return body
        text = body[:MAX_TEXT].decode("utf-8", "replace")
        raise NoPictureError(
            f"{self._what} answered GET /screenshot with {response.status}: {text}"
        )

    async def _screen_size(self) -> tuple[int, int]:
        size = _object(await self._call("POST", "/screen_size", body={}), "/screen_size")
        return int(size["width"]), int(size["height"])

    async def _settled_by_published(self, condition: Condition) -> Screenshot:
        png, outcome = await self._published.settled(condition)
        return Screenshot(
            png=png,
            grab_ms=0.0,
            encode_ms=0.0,
            settle_ms=1e3 * outcome.waited_s,
            settled=outcome.met,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _call(
        self,
        method: str,
        route: str,
        *,
        body: dict[str, Any] | None = None,
        timeout_s: float = ANSWER_S,
    ) -> bytes:
        async with self._request(method, route, json=body, timeout_s=timeout_s) as response:
            return await response.read()

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        route: str,
        *,
        timeout_s: float = ANSWER_S,
        accept: tuple[int, ...] | None = (200,),
        **kwargs: Any,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        # One deadline over connecting, the answer and its body: a guest may stall in each.
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        url = self.address.url_of(route)
        try:
            async with self._open().request(method, url, timeout=timeout, **kwargs) as response:
                if accept is not None and response.status not in accept:
                    text = (await response.text(errors="replace"))[:MAX_TEXT]
                    raise EnvError(
                        f"{self._what} answered {method} {route} with {response.status}: {text}"
                    )
                yield response
        except TimeoutError:
            raise EnvError(
                f"{self._what} did not answer {method} {route} within {timeout_s:g} s"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise EnvError(
                f"{self._what} cannot be reached for {method} {route}: "
                f"{type(error).__name__}: {error}"
            ) from None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self.address.socket is not None:
                path = str(self.address.socket)
                connector = aiohttp.UnixConnector(path, limit=0, keepalive_timeout=KEEP_S)
            else:
                connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_S)
            self._session = aiohttp.ClientSession(connector=connector, headers=self.address.headers)
        return self._session


def _object(answer: bytes, route: str) -> dict[str, Any]:
    try:
        body = json.loads(answer)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise EnvError(f"{route}: expected a JSON object, got {answer[:MAX_TEXT]!r}")
    return body
