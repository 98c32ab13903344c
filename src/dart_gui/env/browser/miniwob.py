"""MiniWoB++ as a family of pages.

The screen is the 160 x 210 task area, instruction bar (top 50 pixels) included.

Reward is ``max(0, WOB_RAW_REWARD_GLOBAL)``: the page's own reward, without its discount by time.
Success is a finished episode of raw reward 1 or more; partial credit is not success. An unfinished
episode is worth 0. The time limit of the pages is lifted: the runner counts steps.

How the pages differ from those of the package: no caret, no CSS or jQuery animation, no START
cover before and after the episode, a clipboard per page, and no way to leave the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dart_gui.env.browser.miniwob_tasks import page_name
from dart_gui.env.browser.page_env import Start
from dart_gui.env.browser.pages import INIT_JS, STAY_JS, PageSettings, PageSlot
from dart_gui.errors import SetupError
from dart_gui.types import Evaluation, Task

WIDTH, HEIGHT = 160, 210
VIEWPORT = (500, 320)
"""Wider than the task area: the reward display is at its right, and the page must not scroll."""
PARKED = (480, 300)
"""Where the mouse rests between episodes: left on the task it would hover over the next one."""
EPISODE_MAX_MS = 2**31 - 1
"""The longest delay that a timer takes; the pages' own limit of about 10 s is for fast policies."""

REUSABLE_PAGES = frozenset(
    {
        "click-button-sequence",
        "click-collapsible",
        "click-color",
        "click-dialog",
        "click-test",
        "click-test-2",
        "enter-text",
        "focus-text-2",
        "grid-coordinate",
    }
)
"""Pages on which an episode after another one equals, frame by frame, the same episode on a fresh
document (a test compares them): they start the next one in place, at a tenth of the cost of loading
the page. The default suite is among them; of the others this has not been shown."""

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
    return (html_dir() / f"{page_name(task_id)}.html").as_uri()


@dataclass(frozen=True, slots=True)
class TaskState:
    """What the page says of its episode."""

    done: bool
    raw_reward: float

    def evaluation(self) -> Evaluation:
        raw = self.raw_reward if self.done else 0.0
        return Evaluation(reward=min(1.0, max(0.0, raw)), success=raw >= 1.0)


class MiniwobPages:
    """See ``PageFamily``."""

    screen = (WIDTH, HEIGHT)
    settings = PageSettings(viewport=VIEWPORT, init_scripts=(INIT_JS, STAY_JS))
    needs_fresh_page = False

    def check_machine(self) -> None:
        html_dir()

    def url(self, task_id: str) -> str:
        return page_url(task_id)

    async def start(self, slot: PageSlot, task: Task, ms: int) -> Start:
        url = page_url(task.task_id)
        await slot.page.mouse.move(*PARKED)
        in_place = slot.loaded == url and Path(url).stem in REUSABLE_PAGES
        if not (in_place and await slot.page.evaluate("() => __dart.clear()")):
            await slot.load(url)
        instruction, done, raw_reward, hovers_first = await slot.page.evaluate(
            _START_JS, [str(task.seed), EPISODE_MAX_MS, ms]
        )
        return Start(
            instruction=instruction,
            state=TaskState(done, raw_reward),
            hovers_first=hovers_first,
        )

    async def advance(self, slot: PageSlot, ms: int, *, may_scroll: bool) -> TaskState:
        return TaskState(*await slot.page.evaluate(_ADVANCE_JS, [ms, may_scroll]))

    async def evaluate(self, task: Task, state: TaskState) -> Evaluation:
        return state.evaluation()
