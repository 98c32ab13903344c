"""What the checks of the contract are made of: one task to try, and how to say what is wrong."""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from PIL import Image

from dart_gui.env.protocol import Env, EnvCluster
from dart_gui.types import Evaluation, Observation, Task


class Broken(Exception):
    """The environment does not keep a promise; the text says which and how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One task to check. ``cluster`` is running, and has at least two environments, all free."""

    cluster: EnvCluster
    task: Task
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep

    @asynccontextmanager
    async def episode(self, task: Task | None = None) -> AsyncIterator[tuple[Env, Observation]]:
        """A leased environment that shows ``task``, and what it shows."""
        task = task or self.task
        async with self.cluster.lease(task) as env:
            yield env, await env.reset(task)


def require(condition: bool, text: str) -> None:
    if not condition:
        raise Broken(text)


def check_frame(shown: Observation) -> None:
    """Raises ``Broken`` unless the screenshot is a PNG of the size that the observation says."""
    try:
        image = Image.open(io.BytesIO(shown.screenshot))
        image.load()
    except OSError as error:
        raise Broken(f"the screenshot is no picture: {error}") from None
    require(image.format == "PNG", f"the screenshot is a {image.format}, expected a PNG")
    require(
        image.size == (shown.width, shown.height),
        f"the screenshot has {image.size[0]} x {image.size[1]} pixels, the observation says "
        f"{shown.width} x {shown.height}",
    )


def difference(first: Observation, second: Observation) -> str:
    names = ("instruction", "width", "height", "terminated", "action_error", "screenshot")
    differing = [name for name in names if getattr(first, name) != getattr(second, name)]
    if differing == ["screenshot"]:
        return "other pixels"
    name = differing[0] if differing else "nothing"
    return f"another {name}: {getattr(first, name, '')!r}, {getattr(second, name, '')!r}"


def check_score(score: Evaluation) -> Evaluation:
    """Raises ``Broken`` unless the reward is a finite number in [0, 1]."""
    reward = score.reward
    is_number = isinstance(reward, float | int) and math.isfinite(reward)
    require(is_number and 0 <= reward <= 1, f"the reward is {reward!r}, expected one in [0, 1]")
    require(isinstance(score.success, bool), f"success is {score.success!r}, expected a bool")
    return score


async def raises(kind: type[Exception], work: Awaitable[object], what: str) -> None:
    """Raises ``Broken`` unless ``work`` raises ``kind``."""
    try:
        given = await work
    except kind:
        return
    except Exception as error:
        raise Broken(f"{what}: expected {kind.__name__}, got {error!r}") from None
    raise Broken(f"{what}: expected {kind.__name__}, got {type(given).__name__}")
