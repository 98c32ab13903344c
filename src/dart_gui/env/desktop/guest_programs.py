"""Routes of the guest API that run programs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from dart_gui.env.desktop.execute import Done, Programs, execute
from dart_gui.env.desktop.guest import GUEST, Guest, GuestError, read_object, seconds
from dart_gui.env.desktop.guest_files import expand
from dart_gui.env.desktop.screen import WindowQuery
from dart_gui.env.desktop.watch import Condition

EXECUTE_S = 120.0  # OSWorld's limits
VERIFY_S = 10.0
LOOK_S = 5.0
OPEN_S = 60.0
ACCESSIBILITY_S = 60.0
PROGRAMS = web.AppKey("programs", Programs)
_TREE = Path(__file__).with_name("accessibility.py")


def add_routes(app: web.Application) -> None:
    app[PROGRAMS] = Programs()
    app.on_cleanup.append(_end_programs)
    for prefix in ("", "/setup"):
        app.router.add_post(f"{prefix}/execute", _execute)
        app.router.add_post(f"{prefix}/execute_with_verification", _execute_verified)
    app.router.add_post("/setup/launch", _launch)
    app.router.add_post("/setup/open_file", _open_file)
    app.router.add_get("/terminal", _terminal)
    app.router.add_get("/accessibility", _accessibility)


async def _end_programs(app: web.Application) -> None:
    await app[PROGRAMS].close()


def _command(body: dict[str, Any]) -> str | list[str]:
    command = body.get("command")
    if isinstance(command, str) and command:
        return command
    if isinstance(command, list) and command and all(isinstance(word, str) for word in command):
        return command
    raise GuestError(400, "command must be a text or a list of texts, and not empty")


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
    shell, limit_s = bool(body.get("shell")), seconds(body, "timeout", EXECUTE_S)
    done = await _run(request.app[GUEST], _command(body), shell=shell, limit_s=limit_s)
    return web.json_response(_answer(done))


async def _execute_verified(request: web.Request) -> web.Response:
    """Run a command, then look until what it should bring about is there."""
    guest = request.app[GUEST]
    body = await read_object(request)
    verification = body.get("verification") or {}
    max_wait_s = seconds(body, "max_wait_time", VERIFY_S)
    every_s = seconds(body, "check_interval", 1.0)
    shell = bool(body.get("shell"))
    done = await _run(guest, _command(body), shell=shell, limit_s=EXECUTE_S)
    if not verification:
        return web.json_response(_answer(done))
    began, missing = guest.clock(), f"nothing was looked at within {max_wait_s:g} s"
    while guest.clock() - began < max_wait_s:
        if not (missing := await _missing(guest, verification)):
            verified = {"verification": "passed", "wait_time": guest.clock() - began}
            return web.json_response(_answer(done) | verified)
        await asyncio.sleep(every_s)
    failed = {"status": "verification_failed", "verification": "failed", "wait_time": max_wait_s}
    return web.json_response(_answer(done) | failed | {"message": missing}, status=500)


async def _missing(guest: Guest, verification: dict[str, Any]) -> str:
    window, command = verification.get("window_exists"), verification.get("command_success")
    if window and await guest.find_window(WindowQuery(name=str(window))) is None:
        return f"there is no window {window!r}"
    if not command:
        return ""
    try:
        done = await _run(guest, str(command), shell=True, limit_s=LOOK_S)
    except GuestError as late:
        return str(late)
    if done.returncode == 0:
        return ""
    return f"the command {command!r} ended with {done.returncode}"


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
