"""Routes of the guest API that film the screen."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from dart_gui.env.desktop.guest import GUEST, GuestError
from dart_gui.env.desktop.screen import Screen

FPS = 15
START_S = 30.0
"""For the first frame to be in the film."""
STOP_S = 20.0
_LOOK_S = 0.02
_MAX_SAID = 500
FILM = Path("/tmp/recording.mp4")
SAID = Path("/tmp/recording.log")  # what ffmpeg says of errors


class Recorder:
    """One film at a time. Methods raise ``GuestError``."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    async def start(self, screen: Screen) -> None:
        """Returns once ffmpeg has written: an end right afterwards leaves a film too."""
        async with self._lock:
            if self._process is not None and self._process.returncode is None:
                raise GuestError(400, "Recording is already in progress.")
            if not shutil.which("ffmpeg"):
                raise GuestError(501, "this desktop cannot record: ffmpeg is not installed")
            FILM.unlink(missing_ok=True)
            self._process = process = await _spawn(screen)
            try:
                async with asyncio.timeout(START_S):
                    while process.returncode is None and not _is_begun():
                        await asyncio.sleep(_LOOK_S)
            except TimeoutError:
                await self._kill()
            if process.returncode is not None:
                text = f"ffmpeg ended with {process.returncode}: {_error()}"
                raise GuestError(500, f"Failed to start recording. {text}")

    async def end(self) -> Path:
        async with self._lock:
            process, self._process = self._process, None
            if process is None:
                raise GuestError(400, "No recording in progress to stop.")
            if process.returncode is not None:
                text = f"ffmpeg ended before with {process.returncode}: {_error()}"
                raise GuestError(400, f"No recording in progress to stop. {text}")
            process.send_signal(signal.SIGINT)  # the file's index is written at a polite end
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()
                text = f"ffmpeg did not end the recording within {STOP_S:g} s: {_error()}"
                raise GuestError(500, text) from None
            if not _is_begun():
                text = f"ffmpeg ended with {process.returncode}: {_error()}"
                raise GuestError(500, f"Recording failed, and left no file. {text}")
            return FILM

    async def close(self) -> None:
        await self._kill()

    async def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):  # it ended by itself
                self._process.kill()
            await self._process.wait()


async def _spawn(screen: Screen) -> asyncio.subprocess.Process:
    size = f"{screen.width}x{screen.height}"
    with SAID.open("wb") as said:
        return await asyncio.create_subprocess_exec(
            *("ffmpeg", "-y", "-loglevel", "error", "-f", "x11grab", "-draw_mouse", "1"),
            *("-framerate", str(FPS), "-video_size", size),
            *("-i", os.environ.get("DISPLAY", ":0")),
            *("-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency"),
            *("-pix_fmt", "yuv420p", "-flush_packets", "1", str(FILM)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=said,
        )


def _is_begun() -> bool:
    return FILM.exists() and FILM.stat().st_size > 0


def _error() -> str:
    return SAID.read_text("utf-8", "replace").strip()[-_MAX_SAID:]


RECORDER = web.AppKey("recorder", Recorder)


def add_routes(app: web.Application) -> None:
    app[RECORDER] = Recorder()
    app.on_cleanup.append(_close)
    app.router.add_post("/start_recording", _start)
    app.router.add_post("/end_recording", _end)


async def _close(app: web.Application) -> None:
    await app[RECORDER].close()


async def _start(request: web.Request) -> web.Response:
    await request.app[RECORDER].start(request.app[GUEST].screen)
    message = "Started recording successfully."
    return web.json_response({"status": "success", "message": message})


async def _end(request: web.Request) -> web.StreamResponse:
    return web.FileResponse(await request.app[RECORDER].end())
