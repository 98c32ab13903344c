"""Routes of the guest API that run programs."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from dart_gui.env.desktop.execute import Done, Programs, execute
from dart_gui.env.desktop.guest import GUEST, Guest, GuestError, read_object
from dart_gui.env.desktop.guest_files import expand
from dart_gui.env.desktop.screen import WindowQuery
from dart_gui.env.desktop.watch import Condition

EXECUTE_S = 120.0  # OSWorld's limits
PYTHON_S = 30.0
VERIFY_S = 10.0
OPEN_S = 60.0
ACCESSIBILITY_S = 60.0
RECORDING_FPS = 15
PROGRAMS = web.AppKey("programs", Programs)
RECORDER = web.AppKey("recorder", dict[str, asyncio.subprocess.Process])
_RECORDING = Path("/tmp/recording.mp4")
_TREE = Path(__file__).with_name("accessibility.py")


def add_routes(app: web.Application) -> None:
    app[PROGRAMS] = Programs()
    app[RECORDER] = {}
    app.on_cleanup.append(_end_programs)
    for prefix in ("", "/setup"):
        app.router.add_post(f"{prefix}/execute", _execute)
        app.router.add_post(f"{prefix}/execute_with_verification", _execute_verified)
    app.router.add_post("/setup/launch", _launch)
    app.router.add_post("/setup/open_file", _open_file)
    app.router.add_post("/run_python", _run_python)
    app.router.add_post("/run_bash_script", _run_bash)
    app.router.add_get("/terminal", _terminal)
    app.router.add_get("/accessibility", _accessibility)
    app.router.add_post("/start_recording", _start_recording)
    app.router.add_post("/end_recording", _end_recording)


async def _end_programs(app: web.Application) -> None:
    await app[PROGRAMS].close()


def _command(body: dict[str, Any]) -> str | list[str]:
    command = body.get("command")
    if isinstance(command, str) and command:
        return command
    if isinstance(command, list) and command and all(isinstance(word, str) for word in command):
        return command
    raise GuestError(400, "command must be a text or a list of texts, and not empty")


def _seconds(body: dict[str, Any], key: str, default: float) -> float:
    try:
        return min(float(body.get(key, default)), 1800.0)
    except (TypeError, ValueError):
        raise GuestError(400, f"{key} must be a number of seconds") from None


async def _run(guest: Guest, command: str | Sequence[str], *, shell: bool, limit_s: float) -> Done:
    done = await execute(command, shell=shell, timeout_s=limit_s, cwd=str(guest.home))
    if done.timed_out:
        # OSWorld's words, by which an evaluation knows it for no doing of the agent.
        raise GuestError(500, f"Command {command!r} timed out after {limit_s:g} seconds")
    return done


def _answer(done: Done) -> dict[str, Any]:
    answer = {"output": done.output, "error": done.error, "returncode": done.returncode}
    return {"status": "success", **answer, "truncated": done.truncated}


async def _execute(request: web.Request) -> web.Response:
    """``status`` says that the command ran; how it ended stands in ``returncode``."""
    body = await read_object(request)
    shell, limit_s = bool(body.get("shell")), _seconds(body, "timeout", EXECUTE_S)
    done = await _run(request.app[GUEST], _command(body), shell=shell, limit_s=limit_s)
    return web.json_response(_answer(done))


async def _execute_verified(request: web.Request) -> web.Response:
    """Run a command, then look until what it should bring about is there."""
    guest = request.app[GUEST]
    body = await read_object(request)
    verification = body.get("verification") or {}
    wait_s = _seconds(body, "max_wait_time", VERIFY_S)
    shell = bool(body.get("shell"))
    done = await _run(guest, _command(body), shell=shell, limit_s=EXECUTE_S)
    deadline = guest.clock() + wait_s
    while missing := await _missing(guest, verification):
        if guest.clock() >= deadline:
            answer = _answer(done) | {"status": "error", "message": missing}
            return web.json_response(answer, status=500)
        await asyncio.sleep(_seconds(body, "check_interval", 1.0))
    return web.json_response(_answer(done) | {"verification": "success"})


async def _missing(guest: Guest, verification: dict[str, Any]) -> str:
    window, command = verification.get("window_exists"), verification.get("command_success")
    if window and await guest.find_window(WindowQuery(name=str(window))) is None:
        return f"there is no window {window!r}"
    if command:
        done = await _run(guest, str(command), shell=True, limit_s=EXECUTE_S)
        if done.returncode != 0:
            return f"the command {command!r} ended with {done.returncode}"
    return ""


async def _launch(request: web.Request) -> web.Response:
    body = await read_object(request)
    command = _command(body)
    cwd = str(request.app[GUEST].home)
    await request.app[PROGRAMS].launch(command, shell=bool(body.get("shell")), cwd=cwd)
    text = command if isinstance(command, str) else " ".join(command)
    return web.Response(text=f"{text} launched successfully")


async def _open_file(request: web.Request) -> web.Response:
    """Opens a file with its application, and waits for a window that names it."""
    guest = request.app[GUEST]
    path = expand(guest, (await read_object(request)).get("path"))
    if not path.exists():
        raise GuestError(404, f"there is no file {path}")
    programs = request.app[PROGRAMS]
    await programs.launch(["xdg-open", str(path)], shell=False, cwd=str(guest.home))
    query = WindowQuery(name=path.stem)
    outcome = await guest.watcher.wait(Condition(window=query, timeout_s=OPEN_S))
    if not outcome.met:
        raise GuestError(500, f"{path} was not opened: {outcome.missing}")
    return web.Response(text="File opened successfully")


async def _run_python(request: web.Request) -> web.Response:
    code = (await read_object(request)).get("code")
    if not isinstance(code, str):
        raise GuestError(400, "code must be a text")
    python = shutil.which("python3") or sys.executable
    return await _script(request, [python, "-c", code], limit_s=PYTHON_S)


async def _run_bash(request: web.Request) -> web.Response:
    body = await read_object(request)
    script = body.get("script")
    if not isinstance(script, str):
        raise GuestError(400, "script must be a text")
    limit_s = _seconds(body, "timeout", PYTHON_S)
    return await _script(request, ["/bin/bash", "-c", script], limit_s=limit_s)


async def _script(request: web.Request, argv: list[str], *, limit_s: float) -> web.Response:
    done = await _run(request.app[GUEST], argv, shell=False, limit_s=limit_s)
    status = "success" if done.returncode == 0 else "error"
    answer = {"status": status, "message": done.output, "return_code": done.returncode}
    return web.json_response(_answer(done) | answer)


async def _terminal(_: web.Request) -> web.Response:
    """OSWorld reads GNOME Terminal's text here; other terminals do not tell theirs."""
    return web.json_response({"output": None, "status": "success"})


async def _accessibility(request: web.Request) -> web.Response:
    """The accessibility tree as XML, by the system's Python, which has the GObject bindings.

    OSWorld polls it through a library that walks each cell of a sheet; only what is shown is here.
    """
    argv = ["/usr/bin/python3", str(_TREE)]
    done = await _run(request.app[GUEST], argv, shell=False, limit_s=ACCESSIBILITY_S)
    if done.returncode != 0:
        raise GuestError(501, f"no accessibility tree: {done.error.strip()[-300:]}")
    return web.json_response({"AT": done.output})


async def _start_recording(request: web.Request) -> web.Response:
    guest, recorder = request.app[GUEST], request.app[RECORDER]
    if recorder:
        raise GuestError(400, "a recording is running already")
    if not shutil.which("ffmpeg"):
        raise GuestError(501, "this desktop cannot record: ffmpeg is not installed")
    size = f"{guest.screen.width}x{guest.screen.height}"
    display = os.environ.get("DISPLAY", ":0")
    recorder["ffmpeg"] = await asyncio.create_subprocess_exec(
        *("ffmpeg", "-y", "-loglevel", "error", "-f", "x11grab", "-draw_mouse", "1"),
        *("-framerate", str(RECORDING_FPS), "-video_size", size, "-i", display),
        *("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p", str(_RECORDING)),
        stdin=asyncio.subprocess.DEVNULL,
    )
    return web.json_response({"status": "success", "message": "Recording started"})


async def _end_recording(request: web.Request) -> web.StreamResponse:
    recorder = request.app[RECORDER]
    if not recorder:
        raise GuestError(400, "no recording is running")
    process = recorder.pop("ffmpeg")
    if process.returncode is None:
        process.send_signal(signal.SIGINT)  # the file's index is written at a polite end
    try:
        await asyncio.wait_for(process.wait(), 20)
    except TimeoutError:
        process.kill()
        raise GuestError(500, "ffmpeg did not end the recording within 20 s") from None
    if not _RECORDING.exists():
        raise GuestError(500, f"ffmpeg ended with {process.returncode} and left no recording")
    return web.FileResponse(_RECORDING)
