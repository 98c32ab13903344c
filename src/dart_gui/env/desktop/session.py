"""The one program of a desktop: a home, an X server, a window manager, and the guest server.

Run inside the desktop's own namespaces (``providers.xvfb``) or as the command of a container image
(``python -m dart_gui.env.desktop.session --port 5000``). It ends when the X server does, and the
desktop with it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from dart_gui.env.desktop.guest import Guest, new_app
from dart_gui.env.desktop.xscreen import XScreen, connect
from dart_gui.errors import EnvError

log = logging.getLogger(__name__)

START_S = 60.0
BACKGROUND = 0x3B5B7A
HOME_TEMPLATE = Path(__file__).with_name("home")
STOP_S = 2.0
_LOCAL_FAMILY = 256  # of a display at a Unix socket, in Xauthority
ENVIRON = {
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "XDG_SESSION_TYPE": "x11",
    "GTK_MODULES": "gail:atk-bridge",
    "NO_AT_BRIDGE": "0",
    "GTK_A11Y": "atspi",
    "SAL_USE_VCLPLUGIN": "gen",  # LibreOffice's own toolkit: no theme, no blinking caret of GTK
}


class Session:
    """What runs in the desktop besides the applications."""

    def __init__(self, *, width: int, height: int, home: Path) -> None:
        self._size = (width, height)
        self._home = home
        self._processes: list[subprocess.Popen[bytes]] = []
        self._server: subprocess.Popen[bytes] | None = None

    def start(self) -> XScreen:
        """Start everything; returns when a window could be opened.

        Raises:
            EnvError: the X server or the window manager did not start.
        """
        prepare_home(self._home)
        os.chdir(self._home)
        os.environ.update(ENVIRON, HOME=str(self._home))
        provide_python()
        self._start_bus()
        self._server = server = self._start_x()
        screen = connect(
            os.environ["DISPLAY"], timeout_s=START_S, alive=lambda: server.poll() is None
        )
        screen.paint_root(BACKGROUND)
        screen.park_pointer()
        self._spawn(["openbox", "--sm-disable"])
        screen.await_window_manager(timeout_s=START_S, clock=time.monotonic, sleep=time.sleep)
        return screen

    async def wait(self) -> None:
        """Until the X server ends."""
        assert self._server is not None
        while self._server.poll() is None:
            await asyncio.sleep(0.2)

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _spawn(self, argv: Sequence[str], **kwargs: object) -> subprocess.Popen[bytes]:
        try:
            process = subprocess.Popen(list(argv), stdin=subprocess.DEVNULL, **kwargs)  # type: ignore[call-overload]
        except OSError as error:
            raise EnvError(f"cannot start {argv[0]}: {error}") from None
        self._processes.append(process)
        return process

    def _start_x(self) -> subprocess.Popen[bytes]:
        width, height = self._size
        read, write = os.pipe()
        server = self._spawn(
            [
                *("Xvfb", "-displayfd", str(write), "-screen", "0", f"{width}x{height}x24"),
                *("-nolisten", "tcp", "-noreset", "-dpi", "96", "-s", "0"),
            ],
            pass_fds=[write],
        )
        os.close(write)
        with os.fdopen(read) as answer:  # ends without a number where the server ends
            number = answer.readline().strip()
        if not number:
            raise EnvError(f"Xvfb ended with {server.wait()} before it had a display")
        os.environ["DISPLAY"] = f":{number}"
        (self._home / ".Xauthority").write_bytes(access_entry(socket.gethostname(), number))
        return server

    def _start_bus(self) -> None:
        """GTK applications keep their settings by way of the session bus."""
        if not shutil.which("dbus-daemon"):
            return
        runtime = Path(tempfile.mkdtemp(prefix="runtime-"))
        os.environ["XDG_RUNTIME_DIR"] = str(runtime)
        path = runtime / "bus"
        os.environ["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={path}"
        address = f"--address=unix:path={path}"
        self._spawn(["dbus-daemon", "--session", "--nofork", "--nopidfile", address])


def provide_python() -> None:
    """Published clients act by ``python -c "import pyautogui ..."``: where the system has no such
    command, it is our own interpreter, in whose environment that package can be installed."""
    if shutil.which("python"):
        return
    folder = Path(tempfile.mkdtemp(prefix="bin-"))
    command = folder / "python"
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    command.chmod(0o755)
    os.environ["PATH"] += f":{folder}"


def prepare_home(home: Path) -> None:
    """Copy what the template has and ``home`` lacks."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copytree(HOME_TEMPLATE, home, dirs_exist_ok=True)
    for name in ("Desktop", "Documents", "Downloads", "Pictures"):
        (home / name).mkdir(exist_ok=True)


def access_entry(host: str, display: str) -> bytes:
    """An entry of the file with the keys of displays. Our X server admits all of its desktop without one,
    but python-xlib, on which pyautogui stands, warns on stdout where there is none for its display."""
    fields = (host.encode(), display.encode(), b"MIT-MAGIC-COOKIE-1", secrets.token_bytes(16))
    texts = b"".join(struct.pack(">H", len(field)) + field for field in fields)
    return struct.pack(">H", _LOCAL_FAMILY) + texts


async def serve(screen: XScreen, session: Session, *, sock: socket.socket, home: Path) -> None:
    """Answer requests on ``sock`` until the X server ends or SIGTERM comes."""
    guest = Guest(screen, home=home)
    runner = web.AppRunner(new_app(guest), access_log=None, shutdown_timeout=1)
    await runner.setup()
    await web.SockSite(runner, sock).start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    ends = [asyncio.create_task(stop.wait()), asyncio.create_task(session.wait())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for task in ends:
        task.cancel()
    await runner.cleanup()
    with contextlib.suppress(Exception):  # the X server may be gone, which is why we are here
        guest.close()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="dart-gui-desktop", description=__doc__)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--home", type=Path, default=Path.home())
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--fd", type=int, help="a listening socket, inherited")
    where.add_argument("--port", type=int, help="listen on this TCP port of all interfaces")
    args = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    os.environ.pop("PYTHONPATH", None)  # it was for us, not for what runs here
    if args.fd is not None:
        sock = socket.socket(fileno=args.fd)
        sock.set_inheritable(False)  # else every program of the desktop would hold the API open
    else:
        sock = socket.create_server(("", args.port))
    session = Session(width=args.width, height=args.height, home=args.home)
    try:
        screen = session.start()
        asyncio.run(serve(screen, session, sock=sock, home=args.home))
    except EnvError as error:
        log.error("%s", error)
        return 1
    finally:
        session.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
