"""Typed actions as Playwright mouse and keyboard calls.

``check`` refuses an action without touching the page; ``perform`` carries out what was checked. So
an action is refused before any part of it has happened.
"""

from __future__ import annotations

from playwright.async_api import Page

from dart_gui.env.refusal import ActionRefused, check_points
from dart_gui.types import (
    Action,
    Click,
    Drag,
    Hotkey,
    Hover,
    KeyDown,
    KeyUp,
    Point,
    Press,
    Scroll,
    TypeText,
    Wait,
)

SCROLL_PX = 100
"""CSS pixels of one scroll: two of them cross the task area of MiniWoB++."""
DRAG_MOVES = 5
"""Mouse moves between press and release: a drag handler that sees one jump ignores it."""

_NAMED_KEYS = {
    "alt": "Alt",
    "option": "Alt",
    "arrowdown": "ArrowDown",
    "down": "ArrowDown",
    "arrowleft": "ArrowLeft",
    "left": "ArrowLeft",
    "arrowright": "ArrowRight",
    "right": "ArrowRight",
    "arrowup": "ArrowUp",
    "up": "ArrowUp",
    "backspace": "Backspace",
    "capslock": "CapsLock",
    "cmd": "Meta",
    "command": "Meta",
    "meta": "Meta",
    "super": "Meta",
    "win": "Meta",
    "windows": "Meta",
    "control": "Control",
    "ctrl": "Control",
    "del": "Delete",
    "delete": "Delete",
    "end": "End",
    "enter": "Enter",
    "return": "Enter",
    "esc": "Escape",
    "escape": "Escape",
    "home": "Home",
    "ins": "Insert",
    "insert": "Insert",
    "pagedown": "PageDown",
    "pgdn": "PageDown",
    "pageup": "PageUp",
    "pgup": "PageUp",
    "shift": "Shift",
    "space": "Space",
    "tab": "Tab",
    **{f"f{n}": f"F{n}" for n in range(1, 13)},
}


def key_name(key: str) -> str:
    """Playwright's name of a key, as models write it: ``ctrl``, ``page_up``, ``Enter``, ``a``.

    >>> key_name("ctrl"), key_name("Page Down"), key_name("a")
    ('Control', 'PageDown', 'a')

    Raises:
        ActionRefused: there is no such key.
    """
    if len(key) == 1 and 33 <= ord(key) <= 126:
        return key
    if key in (" ", "\n", "\t"):
        return {" ": "Space", "\n": "Enter", "\t": "Tab"}[key]
    folded = key.strip().lower().replace("_", "").replace("-", "").replace(" ", "")
    if folded not in _NAMED_KEYS:
        raise ActionRefused(f"there is no key {key!r}")
    return _NAMED_KEYS[folded]


def check(action: Action, *, width: int, height: int) -> None:
    """Raise ``ActionRefused`` unless a ``width`` x ``height`` screen can take ``action``."""
    check_points(action, width=width, height=height)
    for key in keys_of(action):
        key_name(key)


def keys_of(action: Action) -> tuple[str, ...]:
    match action:
        case Hotkey(keys=keys):
            if not keys:
                raise ActionRefused("a hotkey needs at least one key")
            return keys
        case Press(key=key) | KeyDown(key=key) | KeyUp(key=key):
            return (key,)
        case _:
            return ()


async def perform(page: Page, action: Action, *, width: int, height: int) -> None:
    """Carry out a checked action.

    Raises:
        ValueError: ``Finished`` or ``CallUser``, which are not for the screen.
    """
    mouse = page.mouse
    match action:
        case Click(point=point):
            await mouse.click(point.x, point.y, button=action.button, click_count=action.count)
        case Hover(point=point):
            await mouse.move(point.x, point.y)
        case Drag(start=start, end=end):
            await mouse.move(start.x, start.y)
            await mouse.down()
            await mouse.move(end.x, end.y, steps=DRAG_MOVES)
            await mouse.up()
        case Scroll():
            await _scroll(page, action, action.point or Point(width / 2, height / 2))
        case TypeText(text=text):
            await _type(page, text)
        case Wait():
            pass
        case Hotkey() | Press() | KeyDown() | KeyUp():
            await _keys(page, action)
        case _:
            raise ValueError(f"{action.kind} never reaches the environment")


async def _scroll(page: Page, action: Scroll, point: Point) -> None:
    dx, dy = {
        "up": (0, -SCROLL_PX),
        "down": (0, SCROLL_PX),
        "left": (-SCROLL_PX, 0),
        "right": (SCROLL_PX, 0),
    }[action.direction]
    await page.mouse.move(point.x, point.y)
    await page.mouse.wheel(dx, dy)


async def _type(page: Page, text: str) -> None:
    """Characters of a US keyboard as key presses, for which some pages listen; others as text."""
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate cannot be sent
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for i, line in enumerate(lines):
        if i:
            await page.keyboard.press("Enter")
        for j, cell in enumerate(line.split("\t")):
            if j:
                await page.keyboard.press("Tab")
            if cell:
                await page.keyboard.type(cell)


async def _keys(page: Page, action: Hotkey | Press | KeyDown | KeyUp) -> None:
    names = [key_name(key) for key in keys_of(action)]
    if not isinstance(action, KeyUp):
        for name in names:
            await page.keyboard.down(name)
    if not isinstance(action, KeyDown):
        for name in reversed(names):
            await page.keyboard.up(name)
