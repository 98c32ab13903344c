"""The reward of a task: OSWorld's own code, in a process of its own with limits."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.ports import CHROME, VLC
from dart_gui.env.osworld import evaluator as script
from dart_gui.env.osworld.door import Door
from dart_gui.env.osworld.downloads import Downloads
from dart_gui.env.osworld.tasks import OsworldTask, cloud_files
from dart_gui.errors import EnvError

SCRIPT = Path(script.__file__)
MAX_ANSWER = 1 << 20
MAX_FILE = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatorSettings:
    python: Path  # of the environment that has desktop-env
    timeout_s: float
    memory_mb: int


async def evaluate(
    client: GuestClient,
    task: OsworldTask,
    *,
    scratch: Path,
    downloads: Downloads,
    settings: EvaluatorSettings,
) -> float:
    """OSWorld's reward in [0, 1] of what the desktop is like now; ``postconfig`` is done already.

    Raises:
        EnvError: an expected file cannot be had, the desktop does not answer, or the evaluator
            crashed, ran out of its limits or answered nonsense: never a reward of 0.
    """
    await place_cloud_files(task.published, scratch=scratch, downloads=downloads)
    async with Door(client, answer_s=settings.timeout_s) as door:
        request = {
            "evaluator": dict(task.published),
            "host": door.host,
            "port": door.port,
            "chromium_port": door.beside(CHROME),
            "vlc_port": door.beside(VLC),
            "cache_dir": str(scratch),
            "limits": {
                "AS": settings.memory_mb << 20,
                "CPU": math.ceil(settings.timeout_s),
                "FSIZE": MAX_FILE,
            },
        }
        answer = await run(request, scratch=scratch, settings=settings)
    # A desktop whose lease ended is a 404 to the getters, like a file that is not there.
    await client.setup("/screen_size", {})
    if door.failure is not None:
        raise EnvError(f"the evaluation of {task.task_id} did not see the desktop: {door.failure}")
    return _reward(answer, task.task_id)


async def place_cloud_files(
    published: Mapping[str, Any], *, scratch: Path, downloads: Downloads
) -> None:
    """Where OSWorld's getter looks before it downloads. Copies: a metric may write to its file."""
    for url, name in cloud_files(published):
        target = (scratch / name).resolve()
        if not target.is_relative_to(scratch.resolve()):
            raise EnvError(f"the evaluator names {name!r} for {url}, which leads out of its folder")
        cached = await downloads.get(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(shutil.copyfile, cached.path, target)


async def run(
    request: Mapping[str, Any], *, scratch: Path, settings: EvaluatorSettings
) -> dict[str, Any]:
    """The evaluator's answer. Whatever it started ends with it.

    Raises:
        EnvError: it did not answer with one JSON object within its limits.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *(str(settings.python), "-s", str(SCRIPT)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=scratch,
            env=_environ(scratch),
            start_new_session=True,
        )
    except OSError as error:
        raise EnvError(
            f"the evaluator cannot be started with {settings.python}: {error}. Run "
            "scripts/setup_osworld.py, or set env.osworld_python"
        ) from None
    try:
        async with asyncio.timeout(settings.timeout_s):
            output, errors = await process.communicate(json.dumps(request).encode())
    except TimeoutError:
        raise EnvError(f"the evaluator did not end within {settings.timeout_s:g} s") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    return _parse(output, errors.decode("utf-8", "replace"), process.returncode)


def _environ(scratch: Path) -> dict[str, str]:
    """Nothing of ours: no token, no proxy before the door, no writable place but the scratch folder."""
    places = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "MPLCONFIGDIR", "NUMBA_CACHE_DIR")
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "NO_PROXY": "*",
        "PYTHONDONTWRITEBYTECODE": "1",
        # Each thread of OpenBLAS reserves address space, which is limited.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        **{name: str(scratch) for name in places},
    }


def _parse(output: bytes, errors: str, returncode: int | None) -> dict[str, Any]:
    try:
        answer = json.loads(output[:MAX_ANSWER])
    except ValueError:
        answer = None
    if isinstance(answer, dict) and returncode == 0:
        return answer
    raise EnvError(
        f"the evaluator ended with {returncode} and {output[:200]!r} instead of a JSON object; it said: "
        f"{errors.strip()[-500:]}"
    )


def _reward(answer: Mapping[str, Any], task_id: str) -> float:
    if "error" in answer:
        raise EnvError(f"the evaluation of {task_id} failed: {answer['error']}")
    score = answer.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise EnvError(f"the evaluation of {task_id} gave {answer!r}, expected a score")
    if not (math.isfinite(score) and 0.0 <= score <= 1.0):
        raise EnvError(f"the evaluation of {task_id} gave {score}, expected a number in [0, 1]")
    return float(score)
