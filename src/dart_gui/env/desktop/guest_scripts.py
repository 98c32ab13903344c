"""Routes of the guest API that run a script given as text. Their answers have OSWorld's keys, which are
not those of ``/execute``."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from dart_gui.env.desktop.execute import CommandError, Done, execute
from dart_gui.env.desktop.guest import GUEST, GuestError, read_object, seconds

PYTHON_S = 30.0  # OSWorld's limits
BASH_S = 100.0
_MERGED = ("/bin/sh", "-c", 'exec /bin/bash "$1" 2>&1', "sh")


def add_routes(app: web.Application) -> None:
    app.router.add_post("/run_python", _run_python)
    app.router.add_post("/run_bash_script", _run_bash)


async def _run_python(request: web.Request) -> web.Response:
    code = (await read_object(request)).get("code")
    if not isinstance(code, str) or not code:
        raise GuestError(400, "Code not supplied!")
    python = shutil.which("python3") or sys.executable
    home = request.app[GUEST].home
    done = await _script(code, [python], suffix=".py", limit_s=PYTHON_S, cwd=home)
    if done.timed_out:
        late = "Execution timeout: Code took too long to execute"
        answer = {"status": "error", "message": late, "error": "TimeoutExpired"}
        return web.json_response({**answer, "need_more": False, "output": None}, status=500)
    return web.json_response(_python_answer(done))


def _python_answer(done: Done) -> dict[str, Any]:
    error = done.error
    if done.returncode != 0 and not error:
        error = f"Process exited with code {done.returncode}"
    return {
        "status": "success" if done.returncode == 0 else "error",
        "message": "\n".join(part for part in (done.output, error) if part),
        "need_more": False,
        "output": done.output,
        "error": error,
        "return_code": done.returncode,
    }


async def _run_bash(request: web.Request) -> web.Response:
    """``output`` has what came on both streams, as it came; ``error`` is always empty."""
    body = await read_object(request)
    script, folder = body.get("script"), body.get("working_dir")
    if not isinstance(script, str) or not script:
        return _no_bash("Script not supplied!", status=400)
    limit_s = seconds(body, "timeout", BASH_S)
    home = request.app[GUEST].home
    cwd = home / os.path.expanduser(str(folder)) if folder else home
    if not cwd.exists():
        return _no_bash(f"Working directory does not exist: {cwd}", status=400)
    try:
        done = await _script(script, _MERGED, suffix=".sh", limit_s=limit_s, cwd=cwd)
    except CommandError as error:
        return _no_bash(f"Failed to execute script: {error}", status=500)
    if done.timed_out:
        return _no_bash(f"Script execution timed out after {limit_s:g} seconds", status=500)
    return web.json_response(
        {
            "status": "success" if done.returncode == 0 else "error",
            "output": done.output,
            "error": "",
            "returncode": done.returncode,
        }
    )


def _no_bash(output: str, *, status: int) -> web.Response:
    answer = {"status": "error", "output": output, "error": "", "returncode": -1}
    return web.json_response(answer, status=status)


async def _script(
    text: str, interpreter: Sequence[str], *, suffix: str, limit_s: float, cwd: Path
) -> Done:
    """Of a file, so that what it says of an error shows the line."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=suffix) as file:
        file.write(text)
        file.flush()
        argv = [*interpreter, file.name]
        return await execute(argv, shell=False, timeout_s=limit_s, cwd=str(cwd))
