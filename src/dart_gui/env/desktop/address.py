"""Where a desktop is, for whoever talks to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a guest server is: a URL, or a Unix socket. ``headers`` go with each request.

    ``ports`` are the URLs of ports of the desktop that are published beside that of the guest; others
    are reached through our guest server (``guest_ports``).
    """

    url: str = "http://desktop"
    socket: Path | None = None
    headers: Mapping[str, str] | None = None
    ports: Mapping[int, str] = field(default_factory=dict)

    def published_port(self, route: str) -> int | None:
        """That ``route`` leads to (``/port/PORT/...``); None where it is one for the guest server."""
        named = (port for port in self.ports if route.startswith(f"/port/{port}/"))
        return next(named, None)

    def url_of(self, route: str) -> str:
        """``route`` begins with a slash."""
        port = self.published_port(route)
        if port is None:
            return self.url + route
        return self.ports[port] + route.removeprefix(f"/port/{port}")
