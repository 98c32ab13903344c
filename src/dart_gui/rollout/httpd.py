"""What the public service and its workers share as HTTP servers: errors in OpenAI's shape, the
bearer token, bounded bodies, and a uvicorn that leaves signals to its owner."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger(__name__)

# Longer than any client of ours keeps an idle connection (15 s): a server that closes first makes
# the next request fail at random.
KEEP_ALIVE_S = 75


class ApiError(Exception):
    """An answer other than 200, in OpenAI's error shape."""

    def __init__(self, status: int, kind: str, message: str, **extra: Any) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.extra = extra

    def response(self) -> Response:
        body = {"message": str(self), "type": self.kind, "code": self.status, **self.extra}
        return json_response({"error": body}, status=self.status)


def bad_request(message: str) -> ApiError:
    return ApiError(400, "invalid_request_error", message)


def json_response(body: Any, *, status: int = 200) -> Response:
    text = json.dumps(body, separators=(",", ":"))
    return Response(text.encode(), status_code=status, media_type="application/json")


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Raises:
    ApiError: 413 beyond ``max_bytes``, read no further; 400 where the client went away.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                raise ApiError(413, "invalid_request_error", f"a body of over {max_bytes} bytes")
            chunks.append(chunk)
    except ClientDisconnect:
        raise bad_request("the client went away before its request was complete") from None
    return b"".join(chunks)


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """Raises:
    ApiError: 400 where the body is not a JSON object.
    """
    try:
        body = json.loads(await read_body(request, max_bytes))
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise bad_request(f"the body must be a JSON object, got {type(body).__name__}")
    return body


def new_app() -> FastAPI:
    """An app without the documentation pages, whose every error is JSON."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_unexpected)
    return app


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path}: {error.detail}"
    response = ApiError(error.status_code, "invalid_request_error", text).response()
    response.headers.update(error.headers or {})  # such as Allow, of a method that is refused
    return response


async def _on_unexpected(_: Request, error: Exception) -> Response:
    return ApiError(500, "internal_error", f"{type(error).__name__}: {error}").response()


class BearerAuth:
    """ASGI middleware: every route wants ``Authorization: Bearer <token>``."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._allowed(scope):
            error = ApiError(401, "authentication_error", "a valid bearer token is required")
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The owner of the event loop decides what a signal does, and in which order."""
        yield


class HttpServer:
    """Serves ``app`` on a bound socket until it is closed."""

    def __init__(self, app: ASGIApp, sock: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=2,
        )
        self._server = _Server(config)
        self._sock = sock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connections queue in the kernel from the moment that the socket listens."""
        self._sock.listen(2048)
        self._task = asyncio.create_task(self._server.serve(sockets=[self._sock]))

    async def wait(self) -> None:
        """Until the server ends. To cancel this wait does not end the server: see :meth:`close`."""
        assert self._task is not None
        await asyncio.shield(self._task)

    async def close(self) -> None:
        self._server.should_exit = True
        if self._task is not None:
            await self._task
