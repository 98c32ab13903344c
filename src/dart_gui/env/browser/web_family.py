"""How an episode goes on in a page of one's own; the contract is in ``web_pages``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from playwright.async_api import Error

from dart_gui.env.browser.page_env import Start
from dart_gui.env.browser.pages import INIT_JS, PageSettings, PageSlot, script_beside
from dart_gui.env.browser.web_pages import WebPages, home_script
from dart_gui.errors import ConfigError, EnvError, boundary
from dart_gui.types import Evaluation, Task

ROAM_JS = script_beside("roam.js")
MAX_HOPS = 10
"""Documents that one action may lead to, one after the other."""

# What a page does wrong is told apart from what the browser does wrong: no retry mends it.
_RESET_JS = """
async ([seed, task]) => {
  const own = globalThis.dartTask;
  for (const name of ['reset', 'state'])
    if (typeof own?.[name] !== 'function') return {problem: `window.dartTask has no ${name}()`};
  __dart.seedRandom(seed);
  if (globalThis.jQuery) jQuery.fx.off = true;
  try {
    return {instruction: await own.reset(seed, task)};
  } catch (error) {
    return {problem: `dartTask.reset() threw ${error}`};
  }
}
"""
# An exception in a timer of the page is the page's own affair, as it is in a browser.
_PASS_JS = "async (ms) => { await __pwClock.controller.runFor(ms).catch(() => {}); }"
_SETTLE_JS = "async () => { await __dart.settle(); }"
_STATE_JS = """
async () => {
  if (typeof globalThis.dartTask?.state !== 'function')
    return {problem: 'window.dartTask has no state()'};
  try {
    return {state: await dartTask.state()};
  } catch (error) {
    return {problem: `dartTask.state() threw ${error}`};
  }
}
"""


@dataclass(frozen=True, slots=True)
class WebState:
    done: bool
    values: Mapping[str, Any]


class WebFamily:
    """See ``PageFamily``."""

    needs_fresh_page = True

    def __init__(self, pages: WebPages) -> None:
        self._pages = pages
        self.screen = pages.screen
        self.settings = PageSettings(
            viewport=pages.screen,
            init_scripts=(INIT_JS, home_script(pages.home), ROAM_JS, pages.script),
            watches_requests=True,
        )

    def check_machine(self) -> None:
        """The files were there when the suite was made; a site may come up later."""

    def url(self, task_id: str) -> str:
        if task_id not in self._pages.urls:
            raise ConfigError(f"there is no task {task_id!r} in the suite {self._pages.name}")
        return self._pages.urls[task_id]

    async def start(self, slot: PageSlot, task: Task, ms: int) -> Start:
        url = self.url(task.task_id)
        await slot.load(url)
        name = task.task_id.partition("/")[2]
        said = await slot.page.evaluate(_RESET_JS, [task.seed, name])
        problem = said.get("problem")
        instruction = said.get("instruction")
        if not problem and not (isinstance(instruction, str) and instruction.strip()):
            problem = f"dartTask.reset() returned {instruction!r}, expected the instruction"
        if problem:
            raise ConfigError(f"{task.task_id} ({url}): {problem}")
        state = await self._pass(slot, ms)
        hovers_first = await slot.page.evaluate("() => __dart.hasHoverPictures()")
        return Start(instruction=instruction, state=state, hovers_first=hovers_first)

    async def advance(self, slot: PageSlot, ms: int, *, may_scroll: bool) -> WebState:
        return await self._pass(slot, ms)

    async def evaluate(self, task: Task, state: WebState) -> Evaluation:
        with boundary(EnvError, f"the reward of {task.task_id} (seed {task.seed})"):
            return await self._pages.evaluate(task, state.values)

    async def _pass(self, slot: PageSlot, ms: int) -> WebState:
        """What an action asked for is there before page time passes, and again after it."""
        await self._come_to_rest(slot)
        await slot.page.evaluate(_PASS_JS, ms)
        await self._come_to_rest(slot)
        said = await slot.page.evaluate(_STATE_JS)
        state = said.get("state")
        if "problem" in said:
            raise EnvError(f"{slot.page.url}: {said['problem']}")
        if not isinstance(state, dict) or not isinstance(state.get("done"), bool):
            raise EnvError(
                f"{slot.page.url}: dartTask.state() returned {state!r}, expected an object with "
                "done, true or false"
            )
        return WebState(state["done"], state)

    async def _come_to_rest(self, slot: PageSlot) -> None:
        """Until every request is answered, every destination is reached and all of it is shown."""
        for _ in range(MAX_HOPS):
            try:
                await slot.quiet()
                going = await slot.page.evaluate("() => __dart.takeDestination()")
            except Error as error:
                if "Execution context was destroyed" not in error.message:
                    raise
                # A post, which begins at once, took the document away under the question.
                await slot.page.wait_for_load_state("load")
                continue
            if going is None:
                await slot.page.evaluate(_SETTLE_JS)
                return
            if going["leaving"]:
                await slot.page.wait_for_function("() => !__dart.isLeaving()")
                await slot.page.wait_for_load_state("load")
            else:
                came_from = slot.page.url if going["url"].startswith("http") else None
                await slot.page.goto(going["url"], wait_until="load", referer=came_from)
        raise EnvError(f"{slot.page.url}: one action led through {MAX_HOPS} pages and on")
