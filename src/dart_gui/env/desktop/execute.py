"""Commands inside the desktop, with their real exit status and bounded time and output."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

MAX_OUTPUT = 4 << 20
"""Bytes of each of stdout and stderr that are kept; the rest is read and thrown away."""
DRAIN_S = 0.5
"""For output that is still in the pipe when the command has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A command that ended, or was ended."""

    returncode: int  # as the shell has it: 128 + N for signal N
    output: str
    error: str
    timed_out: bool
    truncated: bool  # output or error was longer than MAX_OUTPUT


class CommandError(Exception):
    """The command could not be started."""


async def execute(
    command: str | Sequence[str],
    *,
    shell: bool,
    timeout_s: float,
    cwd: str,
    environ: Mapping[str, str] | None = None,
) -> Done:
    """Run ``command`` to its end, or for ``timeout_s``; what it started ends with it then.

    Raises:
        CommandError: there is no such program, or it may not be run.
    """
    argv = _argv(command, shell=shell)
    loop = asyncio.get_running_loop()
    with _starting(argv):
        transport, collector = await loop.subprocess_exec(
            lambda: _Collector(loop),
            *argv,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env={**os.environ, **(environ or {})},
            start_new_session=True,
        )
    try:
        timed_out = not await _within(timeout_s, collector.exited)
        if timed_out:
            _kill_group(transport.get_pid())
            await collector.exited
        await _within(DRAIN_S, collector.drained)
    finally:
        if not collector.exited.done():
            _kill_group(transport.get_pid())
        transport.close()
    code = transport.get_returncode() or 0
    return Done(
        returncode=code if code >= 0 else 128 - code,
        output=collector.text(1),
        error=collector.text(2),
        timed_out=timed_out,
        truncated=collector.truncated,
    )


class Programs:
    """What is started to stay, and ends with ``close`` at the latest."""

    def __init__(self) -> None:
        self._running: set[asyncio.subprocess.Process] = set()
        self._waits: set[asyncio.Task[None]] = set()

    async def launch(self, command: str | Sequence[str], *, shell: bool, cwd: str) -> int:
        """Start a program; its process id.

        Raises:
            CommandError: there is no such program, or it may not be run.
        """
        argv = _argv(command, shell=shell)
        with _starting(argv):
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=cwd,
                start_new_session=True,
            )
        self._running.add(process)
        wait = asyncio.create_task(self._until_ended(process))
        self._waits.add(wait)
        wait.add_done_callback(self._waits.discard)
        return process.pid

    async def close(self) -> None:
        for process in self._running:
            _kill_group(process.pid)
        await asyncio.gather(*self._waits)

    async def _until_ended(self, process: asyncio.subprocess.Process) -> None:
        await process.wait()
        self._running.discard(process)


class _Collector(asyncio.SubprocessProtocol):
    """What a process writes, up to a limit, and when it ended.

    Not asyncio's own ``communicate``: that waits for whoever holds the pipes, such as a program that
    the command left in the background.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.exited: asyncio.Future[None] = loop.create_future()
        self.drained: asyncio.Future[None] = loop.create_future()
        self.truncated = False
        self._kept = {1: bytearray(), 2: bytearray()}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        kept = self._kept[fd]
        room = MAX_OUTPUT - len(kept)
        kept += data[:room]
        self.truncated |= len(data) > room

    def process_exited(self) -> None:
        self.exited.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.drained.set_result(None)

    def text(self, fd: int) -> str:
        return self._kept[fd].decode("utf-8", "replace")


async def _within(limit_s: float, future: asyncio.Future[None]) -> bool:
    """Whether ``future`` is done within ``limit_s``; it is left as it is."""
    done, _ = await asyncio.wait([future], timeout=limit_s)
    return bool(done)


@contextmanager
def _starting(argv: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot start {argv[0]!r}: {error}") from None


def _argv(command: str | Sequence[str], *, shell: bool) -> list[str]:
    """OSWorld's forms: a list is argv; a text is for the shell, or is split as the shell splits. Of words
    that begin with ``~/`` that is the home."""
    if shell:
        text = command if isinstance(command, str) else " ".join(command)
        return ["/bin/sh", "-c", text]
    try:
        argv = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    except ValueError as error:
        raise CommandError(f"cannot split {command!r} into words: {error}") from None
    if not argv:
        raise CommandError("the command is empty")
    return [os.path.expanduser(word) if word.startswith("~/") else word for word in argv]


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):  # it ended by itself
        os.killpg(pid, signal.SIGKILL)
