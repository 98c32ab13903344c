"""OSWorld's set-up steps through the guest API."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dart_gui.env.desktop import setup as desktop
from dart_gui.env.desktop.client import CommandResult, GuestClient
from dart_gui.env.desktop.tasks import SetupStep
from dart_gui.env.osworld import chrome
from dart_gui.env.osworld.downloads import Downloads
from dart_gui.env.osworld.tasks import ABSENT_STEPS, GOOGLE_STEPS, HISTORY_URL
from dart_gui.errors import EnvError, boundary

log = logging.getLogger(__name__)

UNTIL_S = 120.0
"""For what an ``execute`` with ``until`` waits for; OSWorld waits for ever."""
RETRY_S = 0.3
WINDOW_S = 30.0
WINDOWS = {"activate_window": "/setup/activate_window", "close_window": "/setup/close_window"}
_NO_KEYS = "No module named 'pyautogui'"
CHROME_PROFILE = ".config/google-chrome/Default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What the steps of one trajectory share."""

    client: GuestClient
    scratch: Path  # where OSWorld has its ``cache_dir``; of this trajectory alone
    downloads: Downloads
    folder: Path  # that local paths of the tasks start from
    password: str  # of the desktop's user, for sudo
    sleep: desktop.Sleep = asyncio.sleep
    now: Callable[[], float] = time.time  # Unix seconds


async def set_up(stage: Stage, steps: Sequence[SetupStep]) -> None:
    """Carry out the steps in order.

    As in OSWorld a command that fails and a window that is not there go on: postconfig compares files
    that may differ, and asks for windows that the agent may have closed.

    Raises:
        EnvError: a step failed otherwise, or needs a service that is not there.
    """
    for step in steps:
        with boundary(EnvError, f"the set-up step {step.kind} {dict(step.parameters)}"):
            await _set_up(stage, step)


async def _set_up(stage: Stage, step: SetupStep) -> None:
    kind, parameters = step.kind, step.parameters
    if kind == "download":
        for file in parameters["files"]:
            await _download(stage, file["url"], file["path"])
    elif kind == "upload_file":
        for file in parameters["files"]:
            content = await asyncio.to_thread((stage.folder / file["local_path"]).read_bytes)
            await stage.client.write_file(file["path"], content)
    elif kind in ("execute", "command"):
        await _execute(stage, parameters)
    elif kind in WINDOWS:
        await _window(stage, kind, parameters)
    elif kind == "launch":
        command = await _filled(stage, parameters["command"])
        shell = bool(parameters.get("shell", False))
        if isinstance(command, str) and not shell:
            command = command.split()
        await stage.client.launch(command, shell=shell)
    elif kind == "chrome_open_tabs":
        await chrome.open_tabs(stage.client, parameters["urls_to_open"])
    elif kind == "chrome_close_tabs":
        await chrome.close_tabs(stage.client, parameters["urls_to_close"])
    elif kind == "update_browse_history":
        await _history(stage, parameters["history"])
    elif kind in GOOGLE_STEPS or kind == "proxy" or kind in ABSENT_STEPS:
        raise EnvError(_missing(kind))
    else:
        await desktop.set_up(stage.client, [step], sleep=stage.sleep)


def _missing(kind: str) -> str:
    if kind in GOOGLE_STEPS:
        return (
            f"{kind} needs a Google account with its credentials (evaluation_examples/settings) and a "
            "network, which are not supported: leave the task out of env.tasks"
        )
    if kind == "proxy":
        return (
            "a proxy inside the desktop needs a proxy provider's account, which is not supported: "
            "give the desktops a network that reaches the sites themselves"
        )
    return f"OSWorld names the step {kind} and has nothing behind it"


async def _download(stage: Stage, url: str, path: str) -> None:
    cached = await stage.downloads.get(url)
    await stage.client.write_file(path, await asyncio.to_thread(cached.path.read_bytes))


async def _execute(stage: Stage, parameters: Mapping[str, Any]) -> None:
    """With ``stdout`` and ``stderr``, files in the scratch folder that ``cache_file`` getters read;
    with ``until``, again until its output or exit status is as wanted."""
    command = await _filled(stage, parameters["command"])
    until = parameters.get("until") or {}
    waited_s = 0.0
    while True:
        done = await stage.client.execute(command, shell=bool(parameters.get("shell", False)))
        for key, text in (("stdout", done.output), ("stderr", done.error)):
            if name := parameters.get(key):
                _inside(stage.scratch, name).write_text(text, encoding="utf-8")
        if _NO_KEYS in done.error and "pyautogui" in str(command):
            # Going on would be a document that nobody saved.
            raise EnvError(
                "the command presses keys by pyautogui, which the desktop's Python does not have: use "
                "OSWorld's image, or install it there"
            )
        if not until or _met(until, done):
            return
        if waited_s >= UNTIL_S:
            raise EnvError(f"{command!r} was not as {until} wants it within {UNTIL_S:g} s: {done}")
        await stage.sleep(RETRY_S)
        waited_s += RETRY_S


def _met(until: Mapping[str, Any], done: CommandResult) -> bool:
    return (
        ("returncode" in until and done.returncode == until["returncode"])
        or ("stdout" in until and until["stdout"] in done.output)
        or ("stderr" in until and until["stderr"] in done.error)
    )


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise EnvError(f"the file {name!r} would lie outside of the trajectory's folder")
    return path


async def _filled(stage: Stage, command: str | list[str]) -> str | list[str]:
    """OSWorld's placeholders: the password, and the size of the screen."""
    words = [command] if isinstance(command, str) else list(command)
    values = {"{CLIENT_PASSWORD}": stage.password}
    if any("{SCREEN_" in word for word in words):
        size = json.loads(await stage.client.setup("/screen_size", {}))
        for side in ("width", "height"):
            values[f"{{SCREEN_{side.upper()}_HALF}}"] = str(int(size[side]) // 2)
            values[f"{{SCREEN_{side.upper()}}}"] = str(size[side])
    for name, value in values.items():
        words = [word.replace(name, value) for word in words]
    return words[0] if isinstance(command, str) else words


async def _window(stage: Stage, kind: str, parameters: Mapping[str, Any]) -> None:
    body = json.dumps(dict(parameters)).encode()
    answer = await stage.client.relay(
        "POST", WINDOWS[kind], body=body, content_type="application/json", timeout_s=WINDOW_S
    )
    if answer.status != 200:
        log.info("%s %s was answered with %d", kind, dict(parameters), answer.status)


async def _history(stage: Stage, visits: Sequence[Mapping[str, Any]]) -> None:
    """Chrome's history with the visits, in the profile of the desktop's user."""
    cached = await stage.downloads.get(HISTORY_URL)
    database = stage.scratch / "history.sqlite"
    database.write_bytes(cached.path.read_bytes())
    fill_history(database, visits, now=stage.now())
    home = (await stage.client.execute(["sh", "-c", 'printf %s "$HOME"'])).output.strip()
    folder = f"{home}/{CHROME_PROFILE}"
    await stage.client.execute(["mkdir", "-p", folder])
    await stage.client.write_file(f"{folder}/History", database.read_bytes())


def fill_history(database: Path, visits: Sequence[Mapping[str, Any]], *, now: float) -> None:
    """Chrome counts microseconds since 1601, in UTC."""
    with sqlite3.connect(database) as connection:
        for visit in visits:
            at = int((now - visit["visit_time_from_now_in_seconds"] + 11_644_473_600) * 1e6)
            row = connection.execute(
                "INSERT INTO urls (url, title, visit_count, typed_count, last_visit_time, hidden) "
                "VALUES (?, ?, 1, 0, ?, 0)",
                (visit["url"], visit["title"], at),
            )
            connection.execute(
                "INSERT INTO visits (url, visit_time, from_visit, transition, segment_id, "
                "visit_duration) VALUES (?, ?, 0, 805306368, 0, 0)",
                (row.lastrowid, at),
            )
    connection.close()
