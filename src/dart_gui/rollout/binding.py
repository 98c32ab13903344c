"""The socket that the service listens on."""

from __future__ import annotations

import errno
import logging
import socket

from dart_gui.errors import SetupError

log = logging.getLogger(__name__)


def bind(host: str, port: int, preferred: int) -> socket.socket:
    """``preferred`` is tried first where ``port`` is 0, any free one.

    Raises:
        SetupError: the port is taken, or the address is not of this machine.
    """
    if port == 0 and preferred:
        try:
            return _bind_one(host, preferred)
        except OSError:
            log.info("port %d of the last start is taken: using another one", preferred)
    try:
        return _bind_one(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SetupError(
                f"rollout.port = {port} on {host} is taken by another process. Stop that process, "
                "or set rollout.port to another port, or to 0 for a free one."
            ) from None
        raise SetupError(
            f"cannot listen on rollout.host = {host!r}, rollout.port = {port}: "
            f"{error.strerror or error}. Use an address of this machine, such as 127.0.0.1."
        ) from None


def _bind_one(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
