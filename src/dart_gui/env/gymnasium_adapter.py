"""Every task as a Gymnasium environment.

    import gymnasium
    import dart_gui.env.gymnasium_adapter  # registers the tasks of miniwob

    env = gymnasium.make("dart_gui/miniwob-click-test-v0")
    observation, info = env.reset(seed=7)

``gymnasium.make("dart_gui/task-v0", suite="folder/file.py:SUITE", task="shop/buy")`` makes one of any
suite. Each environment has a browser of its own, which ``close()`` ends.

Observation: ``{"screenshot": uint8 [height, width, 3], "instruction": text}``.

Action: a dictionary, of which ``kind`` says what the other entries mean; or, for ``step()`` alone, a
typed action of :mod:`dart_gui.types`.

======== ===================================================================
entry
======== ===================================================================
kind     index into :data:`KINDS`
point    x, y in whole pixels of the screen: where to click, scroll, hover, or begin to drag
end      x, y: where to end the drag
text     what to type; or the keys of ``press`` and ``hotkey``, separated by spaces
======== ===================================================================

Reward: 0 until the episode ends, then the reward of the task, in [0, 1]. An episode is terminated
when its task ends or the agent says ``finished``, and truncated after ``max_steps`` actions; both are
evaluated. ``info`` has the ``seed`` of the instance, the ``action_error`` of an action that could not
be carried out, and at the end ``success``.

Whatever breaks on our side raises :class:`~dart_gui.errors.EnvError`; the next ``reset()`` starts
anew.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import gymnasium
import numpy as np
from gymnasium import spaces
from PIL import Image

from dart_gui.config import EnvConfig
from dart_gui.env.protocol import Env
from dart_gui.env.suites import EVAL_SEEDS, TRAIN_SEEDS, get_suite
from dart_gui.types import (
    Action,
    Click,
    Drag,
    Finished,
    Hotkey,
    Hover,
    Observation,
    Point,
    Press,
    Scroll,
    Task,
    TypeText,
    Wait,
)

KINDS = (
    "click",
    "double_click",
    "right_click",
    "hover",
    "drag",
    "scroll_up",
    "scroll_down",
    "scroll_left",
    "scroll_right",
    "type",
    "press",
    "hotkey",
    "wait",
    "finished",
)
MAX_TEXT = 1000
MAX_INSTRUCTION = 10_000

Result = TypeVar("Result")


class AnyText(spaces.Text):
    """Text of any characters; samples have letters and digits."""

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and self.min_length <= len(x) <= self.max_length


class GuiEnv(gymnasium.Env[dict[str, Any], Any]):
    """One task of a suite; see the module.

    Args:
        task: task id, such as ``miniwob/click-test``.
        suite: as in ``env.suite`` of the configuration.
        max_steps: actions until the episode is truncated.
        seeds: which instances ``reset()`` draws from, "train" or "eval".
        settings: further keys of the configuration's section ``env``.

    Raises:
        ConfigError: there is no such suite or task.
        SetupError: there is no browser, or it does not start.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012  (Gymnasium's way)

    def __init__(
        self,
        task: str,
        suite: str = "miniwob",
        *,
        max_steps: int = 30,
        seeds: str = "train",
        render_mode: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        chosen = get_suite(suite)
        self._task_id = chosen.check(task)
        self._max_steps = max_steps
        self._seeds = {"train": TRAIN_SEEDS, "eval": EVAL_SEEDS}[seeds]
        self.render_mode = render_mode
        config = EnvConfig(suite=suite, num_envs=1, num_browsers=1, **(settings or {}))
        self._cluster = chosen.open_cluster(config)
        self._loop = _LoopThread()
        self._lease = AsyncExitStack()
        self._env: Env | None = None
        self._shown: Observation | None = None
        self._num_steps = 0
        try:
            self._loop.run(self._cluster.start())
            first = self._loop.run(self._begin(Task(task_id=self._task_id, seed=TRAIN_SEEDS[0])))
        except BaseException:
            self.close()
            raise
        self.observation_space = spaces.Dict(
            {
                "screenshot": spaces.Box(0, 255, (first.height, first.width, 3), np.uint8),
                "instruction": AnyText(MAX_INSTRUCTION),
            }
        )
        self.action_space = spaces.Dict(
            {
                "kind": spaces.Discrete(len(KINDS)),
                "point": spaces.MultiDiscrete([first.width, first.height]),
                "end": spaces.MultiDiscrete([first.width, first.height]),
                "text": AnyText(MAX_TEXT, min_length=0),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """A new episode. ``options={"seed": s}`` asks for an instance; else one is drawn."""
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(self._seeds.start, self._seeds.stop))
        instance = int((options or {}).get("seed", drawn))
        shown = self._loop.run(self._begin(Task(task_id=self._task_id, seed=instance)))
        return _arrays(shown), {"seed": instance}

    def step(
        self, action: Mapping[str, Any] | Action
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if self._env is None or self._shown is None:
            raise RuntimeError(
                "step() before reset(), after the end of the episode or after close()"
            )
        typed = to_action(action) if isinstance(action, Mapping) else action
        self._num_steps += 1
        if not isinstance(typed, Finished):
            self._shown = self._loop.run(self._env.step(typed))
        terminated = self._shown.terminated or isinstance(typed, Finished)
        truncated = not terminated and self._num_steps >= self._max_steps
        info: dict[str, Any] = {"action_error": self._shown.action_error}
        reward = 0.0
        if terminated or truncated:
            score = self._loop.run(self._env.evaluate())
            reward, info["success"] = score.reward, score.success
            self._env = None
        return _arrays(self._shown), reward, terminated, truncated, info

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The screen, uint8 [height, width, 3]."""
        if self.render_mode != "rgb_array" or self._shown is None:
            return None
        return _pixels(self._shown)

    def close(self) -> None:
        """End the browser. Idempotent."""
        self._env = None
        if self._loop.is_running:
            try:
                self._loop.run(self._end())
            finally:
                self._loop.close()

    async def _begin(self, task: Task) -> Observation:
        self._env = None
        await self._lease.aclose()
        env = await self._lease.enter_async_context(self._cluster.lease(task))
        self._shown = await env.reset(task)
        self._env, self._num_steps = env, 0
        return self._shown

    async def _end(self) -> None:
        await self._lease.aclose()
        await self._cluster.close()


def to_action(action: Mapping[str, Any]) -> Action:
    """The typed action of an element of the action space; its entries may be numpy's or Python's.

    >>> to_action({"kind": 9, "point": (0, 0), "end": (0, 0), "text": "hello"})
    TypeText(text='hello', kind='type')
    """
    kind = KINDS[int(action["kind"])]
    point, end = _point(action["point"]), _point(action["end"])
    text = str(action["text"])
    match kind:
        case "click" | "double_click":
            return Click(point=point, count=1 if kind == "click" else 2)
        case "right_click":
            return Click(point=point, button="right")
        case "hover":
            return Hover(point=point)
        case "drag":
            return Drag(start=point, end=end)
        case "scroll_up":
            return Scroll(direction="up", point=point)
        case "scroll_down":
            return Scroll(direction="down", point=point)
        case "scroll_left":
            return Scroll(direction="left", point=point)
        case "scroll_right":
            return Scroll(direction="right", point=point)
        case "type":
            return TypeText(text=text)
        case "press":
            return Press(key=text)
        case "hotkey":
            return Hotkey(keys=tuple(text.split()))
        case "wait":
            return Wait()
        case _:
            return Finished(text=text)


def _point(value: Any) -> Point:
    return Point(float(value[0]), float(value[1]))


def _arrays(shown: Observation) -> dict[str, Any]:
    return {
        "screenshot": _pixels(shown),
        "instruction": shown.instruction[:MAX_INSTRUCTION],
    }


def _pixels(shown: Observation) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(shown.screenshot)).convert("RGB"))


class _LoopThread:
    """An event loop in a thread of its own: the caller may have one running already, as a notebook
    has."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def register() -> None:
    """``dart_gui/task-v0`` for any suite, and ``dart_gui/miniwob-<task>-v0``."""
    here = f"{__name__}:{GuiEnv.__name__}"
    gymnasium.register("dart_gui/task-v0", entry_point=here)
    for task in get_suite("miniwob").task_ids:
        name = task.replace("/", "-")
        gymnasium.register(f"dart_gui/{name}-v0", entry_point=here, kwargs={"task": task})


register()
