"""Desktops on this machine: an X server without a screen, in namespaces of its own each."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dart_gui.env.desktop.address import Address
from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.providers import processes
from dart_gui.env.providers.limits import ControlGroups, Limits
from dart_gui.env.providers.protocol import Desktop, Usage
from dart_gui.env.providers.sandbox import (
    HOME,
    DataFiles,
    SandboxSpec,
    account_files,
    python_paths,
    sandbox_argv,
    unreadable,
)
from dart_gui.errors import EnvError, SetupError, boundary

log = logging.getLogger(__name__)

BOOT_S = 120.0
END_S = 10.0
NEEDED = ("bwrap", "Xvfb", "openbox", "setpriv", "prlimit")
INSTALL = "apt-get install xvfb openbox xterm bubblewrap, or run scripts/setup_desktop.py"
BACKLOG = 64
MAX_SOCKET_PATH = 107  # of a Unix socket, in bytes
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_SOCKET, _LOG = "guest.sock", "session.log"
# Enters the control groups before anything else runs: $1 files follow, then the command.
_ENTER = 'n=$1; shift; while [ $n -gt 0 ]; do echo $$ > "$1"; shift; n=$((n-1)); done; exec "$@"'


class XvfbProvider:
    """Desktops whose state is in memory and in one folder, ``root``/<desktop id>.

    The guest server listens on a Unix socket that is made outside and handed in: nothing in a
    desktop can put another in its place, and no port is taken.
    """

    name = "xvfb"

    def __init__(
        self,
        root: Path,
        *,
        width: int = 1280,
        height: int = 720,
        spec: SandboxSpec | None = None,
        limits: Limits | None = None,
        boot_timeout_s: float = BOOT_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root.absolute()
        self._size = (width, height)
        self._spec = spec or SandboxSpec()
        self._limits = limits or Limits()
        self._boot_timeout_s = boot_timeout_s
        self._clock = clock
        self._groups = ControlGroups({}, version=1)
        self._as_root = os.geteuid() == 0
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._booting: set[str] = set()

    async def start(self) -> None:
        check_machine()
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        length = len(os.fsencode(self._root)) + 42 + len(_SOCKET)
        if length > MAX_SOCKET_PATH:
            raise SetupError(
                f"the folder {self._root} is too deep: a socket in it would have a path of {length} "
                f"bytes, and {MAX_SOCKET_PATH} is the limit of the system. Choose a shorter one."
            )
        self._groups = ControlGroups.find()

    def warnings(self) -> list[str]:
        found = [
            f"no limit on {name}: no control group can be made" for name in self._groups.missing
        ]
        if not self._as_root:
            found.append("not root: desktops run under your own user id, in a user namespace")
        return found

    async def create(self, desktop_id: str) -> Desktop:
        began = self._clock()
        if not _ID.fullmatch(desktop_id):
            raise ValueError(f"a desktop id is letters, digits, _ and -; got {desktop_id!r}")
        folder = self._root / desktop_id
        if folder.exists():
            raise FileExistsError(f"there is a desktop {desktop_id!r} already")
        self._booting.add(desktop_id)
        try:
            with boundary(EnvError, f"starting the desktop {desktop_id}"):
                await self._boot(desktop_id, folder)
        except BaseException:
            await self.destroy(desktop_id)
            raise
        finally:
            self._booting.discard(desktop_id)
        return self._describe(desktop_id, created_at=began, boot_s=self._clock() - began)

    async def destroy(self, desktop_id: str) -> None:
        with boundary(EnvError, f"ending the desktop {desktop_id}"):
            await self._destroy(desktop_id)

    async def _destroy(self, desktop_id: str) -> None:
        child = self._children.pop(desktop_id, None)
        if child is not None:
            # By its process id first: until it has become bubblewrap it carries no mark.
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
        await self._end(self._mark(desktop_id))
        folder = self._root / desktop_id
        shutil.rmtree(folder, ignore_errors=True)  # another call may be at it too
        if folder.exists():
            raise EnvError(f"the folder {folder} cannot be removed")

    async def find(self) -> list[Desktop]:
        marks = {process.mark for process in processes.marked()}
        # Nothing is awaited in between: what boots is in the set for as long as it has no mark.
        return [
            self._describe(
                folder.name,
                created_at=folder.stat().st_mtime,
                boot_s=0.0,
                is_running=self._mark(folder.name) in marks,
            )
            for folder in (sorted(self._root.iterdir()) if self._root.is_dir() else [])
            if _ID.fullmatch(folder.name) and folder.name not in self._booting
        ]

    async def usage(self, desktop_id: str) -> Usage | None:
        return await asyncio.to_thread(processes.usage, self._mark(desktop_id))

    async def close(self) -> None:
        """Nothing is held: desktops end with this process, or stay, as ``spec`` says."""

    def _mark(self, desktop_id: str) -> str:
        return str(self._root / desktop_id)

    def _describe(
        self, desktop_id: str, *, created_at: float, boot_s: float, is_running: bool = True
    ) -> Desktop:
        return Desktop(
            desktop_id=desktop_id,
            address=Address(socket=self._root / desktop_id / _SOCKET),
            created_at=created_at,
            boot_s=boot_s,
            is_running=is_running,
        )

    async def _boot(self, desktop_id: str, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        spawning = asyncio.ensure_future(self._spawn(desktop_id, folder))
        try:
            await asyncio.shield(spawning)
        finally:
            await asyncio.wait({spawning})  # cancelled half way it would leave a process behind
        await self._await_ready(desktop_id, folder)

    async def _spawn(self, desktop_id: str, folder: Path) -> None:
        entrances = self._groups.create(_group_name(folder), self._limits)
        with _listening(folder / _SOCKET) as sock, _account_files(as_root=self._as_root) as files:
            session = [sys.executable, "-m", "dart_gui.env.desktop.session"]
            width, height = self._size
            session += ["--width", str(width), "--height", str(height), "--fd", str(sock.fileno())]
            argv = sandbox_argv(
                self._spec, session, as_root=self._as_root, mark=str(folder), files=files
            )
            entering = ["/bin/sh", "-c", _ENTER, "sh", str(len(entrances)), *map(str, entrances)]
            with (folder / _LOG).open("wb") as output:
                self._children[desktop_id] = await asyncio.create_subprocess_exec(
                    *entering,
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[sock.fileno(), files.passwd, files.group],
                    start_new_session=True,
                )

    async def _await_ready(self, desktop_id: str, folder: Path) -> None:
        """Until the guest server answers: the socket queues the question until then, and breaks
        it off where the desktop ends."""
        client = GuestClient(Address(socket=folder / _SOCKET), what=f"the desktop {desktop_id}")
        try:
            await client.wait_ready(timeout_s=self._boot_timeout_s)
        except EnvError as error:
            text = (folder / _LOG).read_text(errors="replace").strip()[-500:]
            raise EnvError(f"{error}. It said: {text or 'nothing'}") from None
        finally:
            await client.close()

    async def _end(self, mark: str) -> None:
        """Kill what carries ``mark``; returns when the kernel has taken down the namespaces, and
        the control groups are removed.

        Raises:
            EnvError: not in time.
        """
        deadline = time.monotonic() + END_S
        while processes.kill(mark) or not self._groups.remove(_group_name(Path(mark))):
            if time.monotonic() > deadline:
                raise EnvError(f"the desktop {mark} did not end within {END_S:g} s of SIGKILL")
            await asyncio.sleep(0.01)


def check_machine() -> None:
    """Raises ``SetupError`` where this machine cannot have desktops, and says what to do."""
    missing = [program for program in NEEDED if not shutil.which(program)]
    if missing:
        raise SetupError(
            f"desktops need {', '.join(missing)}, not found on this machine: {INSTALL}"
        )
    lacking = [name for name in ("Xlib", "mss") if importlib.util.find_spec(name) is None]
    if lacking:
        raise SetupError(f"desktops need {', '.join(lacking)}: pip install 'dart-gui[desktop]'")
    inside = [path for path in python_paths() if f"{path}/".startswith(f"{HOME}/")]
    if inside:
        raise SetupError(
            f"{inside[0]} lies in {HOME}, which is the home within a desktop: move it elsewhere"
        )
    closed = unreadable(python_paths(), as_root=os.geteuid() == 0)
    if closed:
        raise SetupError(
            f"desktops run under a user id of their own, which may not enter {closed[0]}: allow "
            f"it with `chmod -R o+rX {closed[0]}`, or start as another user than root"
        )


def _group_name(folder: Path) -> str:
    """Of its whole path: two servers may have folders of one name, in different places."""
    place = hashlib.sha256(os.fsencode(folder.parent)).hexdigest()[:12]
    return f"dart-{place}-{folder.name}"


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(str(path))
        sock.listen(BACKLOG)
        yield sock
    finally:
        sock.close()


@contextmanager
def _account_files(*, as_root: bool) -> Iterator[DataFiles]:
    descriptors = []
    try:
        for text in account_files(as_root=as_root):
            with tempfile.TemporaryFile() as file:
                file.write(text.encode())
                file.seek(0)
                descriptors.append(os.dup(file.fileno()))
        yield DataFiles(passwd=descriptors[0], group=descriptors[1])
    finally:
        for descriptor in descriptors:
            with suppress(OSError):
                os.close(descriptor)
