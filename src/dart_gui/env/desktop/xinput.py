"""Typed actions as XTEST events: no process, no generated source, and any character of Unicode."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from Xlib import X
from Xlib.ext import xtest

from dart_gui.env.desktop.keys import keysyms, text_keysyms
from dart_gui.types import (
    Action,
    Click,
    Drag,
    Hotkey,
    Hover,
    KeyDown,
    KeyUp,
    Press,
    Scroll,
    TypeText,
    Wait,
)

DRAG_MOVES = 8
"""Motion events between press and release: a drag that is one jump is not taken for a drag."""
SCROLL_CLICKS = 5
"""Wheel clicks of one scroll, as UI-TARS' own executor has it."""
_BUTTONS = {"left": 1, "middle": 2, "right": 3}
_WHEEL = {"up": 4, "down": 5, "left": 6, "right": 7}
_SHIFT, _CAPS_LOCK = 0xFFE1, 0xFFE5
_VENDOR = 0x10080000  # keysyms of media keys and the like, which no action names


class XInput:
    """Pointer and keyboard of one display.

    A character that the keyboard does not have gets a spare keycode. Two hazards: applications read
    the keyboard's mapping when they handle a key, not when it was pressed, so a keycode that passes
    to another character too early types the wrong one; and the window manager works for
    milliseconds on each change of the mapping. So all characters of a text are mapped in one change,
    the least recently used keycodes are given away first, and ``settle`` runs before any that was
    pressed since it last ran.
    """

    def __init__(self, display: Any, settle: Callable[[], None] = lambda: None) -> None:
        self._display = display
        self._settle = settle
        self._codes: dict[int, tuple[int, bool]] = {}  # keysym -> (keycode, with shift)
        self._spare: OrderedDict[int, int | None] = OrderedDict()  # keycode -> keysym given to it
        self._fresh: set[int] = set()  # spare keycodes pressed since the last settle
        self._first = 0  # of the keyboard's keycodes
        self._mapping: list[list[int]] = []  # keysyms of each keycode
        self._keyboard: frozenset[int] = frozenset()
        self._read_mapping()

    def perform(self, action: Action, *, width: int, height: int) -> None:
        match action:
            case Click():
                self.move(action.point.x, action.point.y)
                for _ in range(action.count):
                    self._click(_BUTTONS[action.button])
            case Hover(point=point):
                self.move(point.x, point.y)
            case Drag():
                self._drag(action)
            case Scroll(direction=direction, point=point):
                x, y = (point.x, point.y) if point else (width / 2, height / 2)
                self.move(x, y)
                for _ in range(SCROLL_CLICKS):
                    self._click(_WHEEL[direction])
            case TypeText(text=text):
                self._type(text_keysyms(text))
            case Hotkey() | Press() | KeyDown() | KeyUp():
                self._keys(action)
            case Wait():
                pass
            case _:
                raise ValueError(f"{action.kind} never reaches the screen")
        self._display.sync()

    def move(self, x: float, y: float) -> None:
        xtest.fake_input(self._display, X.MotionNotify, x=int(x), y=int(y))

    def _click(self, button: int) -> None:
        xtest.fake_input(self._display, X.ButtonPress, button)
        xtest.fake_input(self._display, X.ButtonRelease, button)

    def _drag(self, action: Drag) -> None:
        start, end = action.start, action.end
        self.move(start.x, start.y)
        xtest.fake_input(self._display, X.ButtonPress, 1)
        for i in range(1, DRAG_MOVES + 1):
            share = i / DRAG_MOVES
            self.move(start.x + share * (end.x - start.x), start.y + share * (end.y - start.y))
        xtest.fake_input(self._display, X.ButtonRelease, 1)

    def _keys(self, action: Hotkey | Press | KeyDown | KeyUp) -> None:
        names = action.keys if isinstance(action, Hotkey) else (action.key,)
        wanted = keysyms(names)
        self._provide(wanted)
        strokes = [self._codes[keysym] for keysym in wanted]
        codes = [code for code, _ in strokes]
        # In ctrl+A the capital asks for shift; alone, as in ctrl+c, the letter does not.
        if any(shift for _, shift in strokes):
            codes.insert(0, self._codes[_SHIFT][0])
        if not isinstance(action, KeyUp):
            for code in codes:
                xtest.fake_input(self._display, X.KeyPress, code)
        if not isinstance(action, KeyDown):
            for code in reversed(codes):
                xtest.fake_input(self._display, X.KeyRelease, code)

    def _type(self, text: list[int]) -> None:
        is_locked = _CAPS_LOCK in self._codes and self._caps_lock()
        if is_locked:  # off for so long: what is typed is what is meant
            self._tap(_CAPS_LOCK)
        while text:
            part = self._part(text)
            self._provide(part)
            for keysym in part:
                self._tap(keysym)
            text = text[len(part) :]
        if is_locked:
            self._tap(_CAPS_LOCK)

    def _part(self, text: list[int]) -> list[int]:
        """The longest start of ``text`` whose characters can all have keycodes at once."""
        unmapped: set[int] = set()
        for i, keysym in enumerate(text):
            if keysym not in self._keyboard:
                unmapped.add(keysym)
            if len(unmapped) > len(self._spare):
                return text[:i]
        return text

    def _tap(self, keysym: int) -> None:
        code, shift = self._codes[keysym]
        shift_code = self._codes[_SHIFT][0]
        if shift:
            xtest.fake_input(self._display, X.KeyPress, shift_code)
        xtest.fake_input(self._display, X.KeyPress, code)
        xtest.fake_input(self._display, X.KeyRelease, code)
        if shift:
            xtest.fake_input(self._display, X.KeyRelease, shift_code)
        if code in self._spare:
            self._fresh.add(code)
            self._spare.move_to_end(code)

    def _caps_lock(self) -> bool:
        return bool(self._display.screen().root.query_pointer().mask & X.LockMask)

    def _provide(self, wanted: Iterable[int]) -> None:
        """Give a keycode to each keysym that has none."""
        needed = dict.fromkeys(wanted)
        missing = [keysym for keysym in needed if keysym not in self._codes]
        if not missing:
            return
        free = [code for code, keysym in self._spare.items() if keysym not in needed]
        given = dict(zip(free, missing, strict=False))
        self._display.sync()
        if self._fresh & set(given):
            self._settle()
            self._fresh.clear()
        for code, keysym in given.items():
            old = self._spare[code]
            if old is not None:
                del self._codes[old]
            self._codes[keysym] = (code, False)
            self._spare[code] = keysym
            self._spare.move_to_end(code)
            # At every level: a shift that is held does not change what it types.
            self._mapping[code - self._first] = [keysym] * len(self._mapping[0])
        low, high = min(given) - self._first, max(given) - self._first
        self._display.change_keyboard_mapping(min(given), self._mapping[low : high + 1])
        self._display.sync()

    def _read_mapping(self) -> None:
        info = self._display.display.info
        self._first, count = info.min_keycode, info.max_keycode - info.min_keycode + 1
        found = self._display.get_keyboard_mapping(self._first, count)
        self._mapping = [list(syms) for syms in found]
        for i, syms in enumerate(self._mapping):
            code = self._first + i
            if all(sym == 0 or sym >= _VENDOR for sym in syms):
                self._spare[code] = None
                continue
            for level in (0, 1):
                if syms[level]:
                    self._codes.setdefault(syms[level], (code, level == 1))
        self._keyboard = frozenset(self._codes)  # what is there without a spare keycode
