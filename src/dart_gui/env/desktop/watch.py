"""Waiting for the screen: until nothing changes any more, until a window is there and painted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from dart_gui.env.desktop.screen import Frame, Window, WindowQuery

POLL_S = 0.02
SAMPLE = 2
"""Colours are counted on every second pixel of every second row."""

Grab = Callable[[], Awaitable[Frame]]
ListWindows = Callable[[], Awaitable[list[Window]]]
Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What to wait for. All that is set must hold at once."""

    stable_s: float = 0.1  # nothing changed on the screen for so long
    react_s: float = 0.0  # time for a first change since the frame that is given to ``wait``
    window: WindowQuery | None = None  # there, and the active one
    min_colors: int = 0  # different ones in the window, or on the screen; a blank window has few
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    met: bool
    waited_s: float
    missing: str  # what did not hold at the end; empty where all did


class Watcher:
    """Looks at the screen until a condition holds. Every wait has a deadline."""

    def __init__(
        self,
        grab: Grab,
        windows: ListWindows,
        *,
        clock: Clock,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._grab = grab
        self._windows = windows
        self._clock = clock
        self._sleep = sleep

    async def wait(self, condition: Condition, *, since: Frame | None = None) -> Outcome:
        """``since`` is the screen before an action: one that has not changed from it yet may still
        be about to, as a dialog takes a moment to open.

        A screen that goes back to what it showed before its last change is still: a caret blinks
        between the same two pictures for ever.
        """
        began = changed_at = self._clock()
        frame = before = await self._grab()
        while True:
            now = self._clock()
            reacted = since is None or frame.pixels != since.pixels
            if reacted or now - began >= condition.react_s:
                since = None
                missing = await self._missing(condition, frame, still_s=now - changed_at)
            else:
                missing = f"the screen did not change within {now - began:.2f} s"
            if not missing or now - began >= condition.timeout_s:
                return Outcome(met=not missing, waited_s=now - began, missing=missing)
            await self._sleep(POLL_S)
            new = await self._grab()
            if new.pixels == frame.pixels:
                continue
            if new.pixels != before.pixels:
                changed_at = self._clock()
            before, frame = frame, new

    async def _missing(self, condition: Condition, frame: Frame, *, still_s: float) -> str:
        if still_s < condition.stable_s:
            return f"the screen changed {still_s:.2f} s ago, not {condition.stable_s:g} s"
        window = None
        if condition.window is not None:
            query = condition.window
            matching = [window for window in await self._windows() if query.matches(window)]
            window = next((window for window in matching if window.is_active), None)
            if not matching:
                return f"there is no window {query.name!r}"
            if window is None:
                return f"the window {query.name!r} is not the active one"
        if condition.min_colors:
            count = num_colors(frame, window)
            if count < condition.min_colors:
                return f"{count} colours are shown, expected {condition.min_colors}"
        return ""


def num_colors(frame: Frame, window: Window | None = None) -> int:
    """Different colours in the content of ``window``, or on the whole screen."""
    left, top, right, bottom = 0, 0, frame.width, frame.height
    if window is not None:
        left, top = max(window.x, 0), max(window.y, 0)
        right = min(window.x + window.width, frame.width)
        bottom = min(window.y + window.height, frame.height)
    pixels = memoryview(frame.pixels).cast("I")
    colors: set[int] = set()
    for y in range(top, bottom, SAMPLE):
        row = y * frame.width
        colors.update(pixels[row + left : row + right : SAMPLE])
    return len({color & 0x00FFFFFF for color in colors})  # the unused byte says nothing
