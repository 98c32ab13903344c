"""OSWorld's set-up steps, and the evaluation, carried out through the guest API."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dart_gui.env.desktop.checks import GETTERS, METRICS
from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.tasks import Check, Evaluator, SetupStep
from dart_gui.errors import EnvError, boundary

STEP_S = 180.0
Sleep = Callable[[float], Awaitable[None]]
_POSTED = {  # steps that are one request of the guest API with the parameters as they are
    "launch": "/setup/launch",
    "open": "/setup/open_file",
    "activate_window": "/setup/activate_window",
    "close_window": "/setup/close_window",
    "change_wallpaper": "/setup/change_wallpaper",
    "execute_with_verification": "/setup/execute_with_verification",
}


async def set_up(
    client: GuestClient, steps: Sequence[SetupStep], *, sleep: Sleep = asyncio.sleep
) -> None:
    """Carry out the steps in order.

    Raises:
        EnvError: one failed: the task cannot be played as it is meant.
    """
    for step in steps:
        with boundary(EnvError, f"the set-up step {step.kind} {dict(step.parameters)}"):
            await _set_up(client, step.kind, step.parameters, sleep)


async def _set_up(
    client: GuestClient, kind: str, parameters: Mapping[str, Any], sleep: Sleep
) -> None:
    if kind in _POSTED:
        await client.setup(_POSTED[kind], dict(parameters), timeout_s=STEP_S)
    elif kind == "wait":
        await client.wait(**_condition(parameters))
    elif kind in ("execute", "command"):
        shell = bool(parameters.get("shell", False))
        done = await client.execute(parameters["command"], shell=shell)
        # OSWorld goes on after a command that failed; a set-up that is not what it should be
        # is a task that cannot be solved, or is solved already.
        if done.returncode != 0 and not parameters.get("may_fail"):
            raise EnvError(
                f"the set-up command {parameters['command']!r} ended with {done.returncode}: "
                f"{done.error.strip()[-200:]}"
            )
    elif kind == "upload_file":
        for file in parameters["files"]:
            content = await asyncio.to_thread(Path(file["local_path"]).read_bytes)
            await client.write_file(file["path"], content)
    elif kind == "sleep":
        await sleep(float(parameters["seconds"]))
    else:
        raise EnvError(f"there is no set-up step {kind!r}")


def _condition(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``POST /wait`` as arguments of ``GuestClient.wait``."""
    names = {"stable_ms": "stable_s", "timeout_ms": "timeout_s"}
    return {
        names.get(name, name): value / 1e3 if name in names else value
        for name, value in parameters.items()
    }


async def evaluate(client: GuestClient, evaluator: Evaluator) -> float:
    """OSWorld's reward in [0, 1] once ``postconfig`` is done: with "and" the mean, but 0 where one is 0;
    with "or" the best.

    Raises:
        EnvError: the desktop does not answer, or a metric fails on what it is given.
    """
    scores = []
    for check in evaluator.checks:
        score = await _score(client, check)
        if evaluator.every and score == 0.0:
            return 0.0
        if not evaluator.every and score == 1.0:
            return 1.0
        scores.append(score)
    return sum(scores) / len(scores) if evaluator.every else max(scores)


async def _score(client: GuestClient, check: Check) -> float:
    with boundary(EnvError, f"the metric {check.func} of {json.dumps(dict(check.result))}"):
        arguments = [await GETTERS[check.result["type"]](client, check.result)]
        if check.expected is not None:
            arguments.append(await GETTERS[check.expected["type"]](client, check.expected))
        score = float(METRICS[check.func](*arguments, **check.options))
    if not (math.isfinite(score) and 0.0 <= score <= 1.0):
        raise EnvError(f"the metric {check.func} gave {score}, expected a number in [0, 1]")
    return score
