"""MiniWoB++ episodes in a page of Chromium.

The screen is the 160 x 210 task area, instruction bar (top 50 pixels) included, at one device pixel
per CSS pixel. The page's clock stands still; ``action_ms`` page milliseconds pass after the reset
and after each action, ``wait_ms`` for a wait. So an episode is a function of (task, seed, actions).

Reward is ``max(0, WOB_RAW_REWARD_GLOBAL)``: the page's own reward, without its discount by time.
Success is a finished episode of raw reward 1 or more; partial credit is not success. An unfinished
episode is worth 0. The time limit of the pages is lifted: the runner counts steps.

How the pages differ from those of the package: no caret, no CSS or jQuery animation, no START
cover before and after the episode, a clipboard per page, and no way to leave the page.

Limitations. Headless Chromium does not draw the popup of a native ``<select>`` into the screenshot;
the list can be used by keyboard (click it, arrow keys, Enter). While a mouse button is held, as in
a drag, Chromium scrolls by wall-clock time: text that is selected near the edge of a scrollable
box, and the buttons of a scrollbar after a quarter of a second.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dart_gui.config import EnvConfig
from dart_gui.env import suites
from dart_gui.env.browser import actions
from dart_gui.env.browser.pages import PARKED, PageSlot
from dart_gui.errors import EnvError, SetupError
from dart_gui.types import (
    Action,
    CallUser,
    Click,
    Evaluation,
    Finished,
    Hover,
    KeyDown,
    KeyUp,
    Observation,
    Point,
    Task,
    TypeText,
    Wait,
)

WIDTH, HEIGHT = 160, 210
EPISODE_MAX_MS = 2**31 - 1
"""The longest delay that a timer takes; the pages' own limit of about 10 s is for fast policies."""

REUSABLE_PAGES = frozenset(
    {
        "click-button-sequence",
        "click-color",
        "click-test",
        "click-test-2",
        "enter-text",
        "focus-text-2",
        "grid-coordinate",
    }
)
"""Pages on which an episode after another one equals, frame by frame, the same episode on a fresh
document (a test compares them): they start the next one in place, at a tenth of the cost of loading
the page. The others keep state, such as an accordion or a dialog that was moved."""

# The limit is set after the page has set its own, and before the episode arms its timer.
_START_JS = """
async ([seed, maxMs, ms]) => {
  const clock = globalThis.__pwClock;
  const ready = async () => {
    while (!WOB_TASK_READY) await new Promise(f => clock.builtins.setTimeout(f, 5));
  };
  if (globalThis.jQuery) jQuery.fx.off = true;
  await ready();
  Math.seedrandom(seed);
  core.EPISODE_MAX_TIME = maxMs;
  core.startEpisodeReal();
  await ready();
  const said = core.getUtterance();
  await clock.controller.runFor(ms).catch(() => {});
  await __dart.settle();
  const utterance = typeof said === 'string' ? said : said.utterance;
  return [utterance, WOB_DONE_GLOBAL, WOB_RAW_REWARD_GLOBAL, __dart.hasHoverPictures()];
}
"""

# The page hears of a scroll in the browser's next frame, and may answer it. An exception in a timer
# of the page is the page's own affair, as it is in a browser.
_ADVANCE_JS = """
async ([ms, mayScroll]) => {
  if (mayScroll) await __dart.nextFrame();
  await __pwClock.controller.runFor(ms).catch(() => {});
  await __dart.settle();
  return [WOB_DONE_GLOBAL, WOB_RAW_REWARD_GLOBAL];
}
"""


def html_dir() -> Path:
    """Folder of the task pages in the ``miniwob`` package, found without importing it.

    Importing the package imports Gymnasium and Selenium, which takes seconds.

    Raises:
        SetupError: the package is not installed.
    """
    spec = find_spec("miniwob")
    folder = Path(spec.origin).parent / "html" / "miniwob" if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise SetupError(
            "the package miniwob, which holds the MiniWoB++ pages, is not installed in this "
            "environment: pip install 'miniwob>=1.0,<2'"
        )
    return folder


def page_url(task_id: str) -> str:
    """Raises ``ConfigError`` for an unknown task."""
    name = suites.get_suite("miniwob").page_name(task_id)
    return (html_dir() / f"{name}.html").as_uri()


@dataclass(frozen=True, slots=True)
class TaskState:
    """What the page says of its episode."""

    done: bool
    raw_reward: float

    def evaluation(self) -> Evaluation:
        raw = self.raw_reward if self.done else 0.0
        return Evaluation(reward=min(1.0, max(0.0, raw)), success=raw >= 1.0)


class MiniwobEnv:
    """One episode on a leased page; see ``env.protocol.Env`` for what its methods promise."""

    def __init__(self, slot: PageSlot, config: EnvConfig) -> None:
        self._slot = slot
        self._config = config
        self._instruction = ""
        self._task: Task | None = None
        self._state: TaskState | None = None
        self._hovers_first = False
        self._held: dict[str, None] = {}  # keys that are down, in order

    @property
    def task(self) -> Task:
        """The task of the episode. Raises ``RuntimeError`` before ``reset``."""
        if self._task is None:
            raise RuntimeError("the environment has no task before reset()")
        return self._task

    @property
    def slot(self) -> PageSlot:
        """The page, for demonstrations and tests; an agent sees screenshots only."""
        return self._slot

    async def reset(self, task: Task) -> Observation:
        if self._task is not None:
            raise RuntimeError("an environment is single use: lease another one for an episode")
        url = page_url(task.task_id)
        self._task = task
        await self._slot.open()
        async with self._slot.operation(f"resetting {task.task_id} to seed {task.seed}"):
            page = self._slot.page
            await page.mouse.move(*PARKED)
            in_place = self._slot.loaded == url and Path(url).stem in REUSABLE_PAGES
            if not (in_place and await page.evaluate("() => __dart.clear()")):
                await self._slot.load(url)
            self._instruction, done, raw_reward, self._hovers_first = await page.evaluate(
                _START_JS, [str(task.seed), EPISODE_MAX_MS, self._config.action_ms]
            )
            self._state = TaskState(done, raw_reward)
            return await self._observe()

    async def step(self, action: Action) -> Observation:
        state = self._checked_state("step")
        if state.done:
            raise RuntimeError("step() after the task terminated")
        if isinstance(action, Finished | CallUser):
            raise ValueError(f"{action.kind} is for the runner to answer, not for the environment")
        async with self._slot.operation(f"carrying out {action.kind}"):
            try:
                actions.check(action, width=WIDTH, height=HEIGHT)
            except actions.ActionRefused as refusal:
                return await self._observe(str(refusal))
            self._remember_keys(action)
            if self._hovers_first and isinstance(action, Click):
                await self._hover(action.point)
            await actions.perform(self._slot.page, action, width=WIDTH, height=HEIGHT)
            ms = self._config.wait_ms if isinstance(action, Wait) else self._config.action_ms
            may_scroll = not isinstance(action, Click | Hover | TypeText | Wait)
            advanced = await self._slot.page.evaluate(_ADVANCE_JS, [ms, may_scroll])
            self._state = TaskState(*advanced)
            return await self._observe()

    async def evaluate(self) -> Evaluation:
        return self._checked_state("evaluate").evaluation()

    async def close(self) -> None:
        """Leave the page as the next episode may have it: no key is held."""
        held, self._held = list(self._held), {}
        if not held or self._slot.broken:
            return
        with contextlib.suppress(EnvError):
            async with self._slot.operation("releasing keys"):
                for key in reversed(held):
                    await self._slot.page.keyboard.up(key)

    async def _hover(self, point: Point) -> None:
        """Let the page answer the mouse before its button is pressed, as a hand does."""
        await self._slot.page.mouse.move(point.x, point.y)
        await self._slot.page.evaluate("() => __dart.nextFrame()")

    def _checked_state(self, method: str) -> TaskState:
        if self._slot.broken:
            raise EnvError(f"{method}() on a page that broke earlier in the episode")
        if self._state is None:
            raise RuntimeError(f"{method}() before reset()")
        return self._state

    def _remember_keys(self, action: Action) -> None:
        if isinstance(action, KeyDown):
            self._held[actions.key_name(action.key)] = None
        elif isinstance(action, KeyUp):
            self._held.pop(actions.key_name(action.key), None)

    async def _observe(self, action_error: str | None = None) -> Observation:
        return Observation(
            screenshot=await self._slot.screenshot(WIDTH, HEIGHT),
            width=WIDTH,
            height=HEIGHT,
            instruction=self._instruction,
            terminated=self._state is not None and self._state.done,
            action_error=action_error,
        )
