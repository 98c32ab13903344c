"""The token in the URL, for clients that cannot send a header: ``/t/<token>/generate``."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

_PATH = re.compile(r"/t/([^/]+)(/.*)?")


class UrlToken:
    """ASGI middleware outside the check of the token: it moves the token to where that looks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" else None
        if match is not None:
            token, path = match[1], match[2] or "/"
            headers = [item for item in scope["headers"] if item[0] != b"authorization"]
            headers.append((b"authorization", f"Bearer {token}".encode("latin-1", "replace")))
            scope = {**scope, "path": path, "raw_path": path.encode(), "headers": headers}
        await self._app(scope, receive, send)
