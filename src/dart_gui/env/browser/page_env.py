"""One episode in a page of Chromium, whatever the page is.

What all pages have in common is here: single use, actions, keys, screenshots. What a family of
pages does its own way, a ``PageFamily`` does: where the page of a task is, how an episode starts,
how page time passes, what the episode is worth.

The page's clock stands still; ``action_ms`` page milliseconds pass after the reset and after each
action, ``wait_ms`` for a wait. So an episode is a function of (task, seed, actions).

Limitations. Headless Chromium does not draw the popup of a native ``<select>`` into the screenshot;
the list can be used by keyboard (click it, arrow keys, Enter). While a mouse button is held, as in
a drag, Chromium scrolls by wall-clock time: text that is selected near the edge of a scrollable
box, and the buttons of a scrollbar after a quarter of a second.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Protocol

from dart_gui.config import EnvConfig
from dart_gui.env.browser import actions
from dart_gui.env.browser.pages import PageSettings, PageSlot
from dart_gui.env.refusal import ActionRefused
from dart_gui.errors import EnvError
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


class PageState(Protocol):
    """What a page says of its episode."""

    @property
    def done(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    instruction: str
    state: Any  # a PageState
    hovers_first: bool  # a picture changes under the mouse, so it must be there before a click


class PageFamily(Protocol):
    """The pages of a suite. Its async methods run within one operation of the slot, which bounds
    their time and attributes what goes wrong to the environment."""

    @property
    def screen(self) -> tuple[int, int]:
        """Width and height of the screenshot: the top left of the page, a pixel per CSS pixel."""
        ...

    @property
    def settings(self) -> PageSettings: ...

    @property
    def needs_fresh_page(self) -> bool:
        """Whether no episode may have been in a page before: no storage, cookie or mouse is left."""
        ...

    def check_machine(self) -> None:
        """Raises ``SetupError`` where the pages are missing."""
        ...

    def url(self, task_id: str) -> str:
        """Where the page of a task is. Raises ``ConfigError`` for an unknown task."""
        ...

    async def start(self, slot: PageSlot, task: Task, ms: int) -> Start:
        """Have the page of ``task`` show the instance of its seed, ``ms`` page milliseconds on."""
        ...

    async def advance(self, slot: PageSlot, ms: int, *, may_scroll: bool) -> Any:
        """Let ``ms`` page milliseconds pass after an action; the ``PageState`` then."""
        ...

    async def evaluate(self, task: Task, state: Any) -> Evaluation: ...


class PageEnv:
    """One episode on a leased page; see ``env.protocol.Env`` for what its methods promise."""

    def __init__(self, slot: PageSlot, config: EnvConfig, family: PageFamily) -> None:
        self._slot = slot
        self._config = config
        self._family = family
        self._instruction = ""
        self._task: Task | None = None
        self._state: PageState | None = None
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
        self._family.url(task.task_id)
        self._task = task
        await self._slot.open()
        async with self._slot.operation(f"resetting {task.task_id} to seed {task.seed}"):
            start = await self._family.start(self._slot, task, self._config.action_ms)
            self._instruction, self._state = start.instruction, start.state
            self._hovers_first = start.hovers_first
            return await self._observe()

    async def step(self, action: Action) -> Observation:
        state = self._checked_state("step")
        if state.done:
            raise RuntimeError("step() after the task terminated")
        if isinstance(action, Finished | CallUser):
            raise ValueError(f"{action.kind} is for the runner to answer, not for the environment")
        width, height = self._family.screen
        async with self._slot.operation(f"carrying out {action.kind}"):
            try:
                actions.check(action, width=width, height=height)
            except ActionRefused as refusal:
                return await self._observe(str(refusal))
            self._remember_keys(action)
            if self._hovers_first and isinstance(action, Click):
                await self._hover(action.point)
            await actions.perform(self._slot.page, action, width=width, height=height)
            ms = self._config.wait_ms if isinstance(action, Wait) else self._config.action_ms
            may_scroll = not isinstance(action, Click | Hover | TypeText | Wait)
            self._state = await self._family.advance(self._slot, ms, may_scroll=may_scroll)
            return await self._observe()

    async def evaluate(self) -> Evaluation:
        return await self._family.evaluate(self.task, self._checked_state("evaluate"))

    async def close(self) -> None:
        """Leave the page as the next episode may have it: fresh, or with no key held."""
        held, self._held = list(self._held), {}
        if self._slot.broken:
            return
        if self._family.needs_fresh_page:
            await self._slot.discard()
        elif held:
            with contextlib.suppress(EnvError):
                async with self._slot.operation("releasing keys"):
                    for key in reversed(held):
                        await self._slot.page.keyboard.up(key)

    async def _hover(self, point: Point) -> None:
        """Let the page answer the mouse before its button is pressed, as a hand does."""
        await self._slot.page.mouse.move(point.x, point.y)
        await self._slot.page.evaluate("() => __dart.nextFrame()")

    def _checked_state(self, method: str) -> PageState:
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
        width, height = self._family.screen
        return Observation(
            screenshot=await self._slot.screenshot(width, height),
            width=width,
            height=height,
            instruction=self._instruction,
            terminated=self._state is not None and self._state.done,
            action_error=action_error,
        )
