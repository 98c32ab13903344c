"""Input and windows of an X display with python-xlib alone, so that it runs in any guest.

Our guest server imports it. To a guest that has OSWorld's routes only it goes as text: ``python3 -c TEXT
VERB JSON`` is the program at the end. It must run by itself, on Python 3.8 and with python-xlib 0.15:
nothing of this project may be imported here.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from Xlib import X, display, error
from Xlib.ext import xtest

CLIENT_LIST = "_NET_CLIENT_LIST_STACKING"
REST_S, REST_LIMIT_S = 0.2, 3.0
SHIFT, CAPS_LOCK = 0xFFE1, 0xFFE5
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

    def perform(self, strokes: Iterable[Sequence[Any]]) -> None:
        """``(move, x, y)``, ``(button, number, is_down)``, ``(keys, way, keysyms)`` with the way
        ``tap``, ``down`` or ``up``, ``(type, keysyms)``, and ``(settle,)``: until the screen rests."""
        for stroke in strokes:
            kind = stroke[0]
            if kind == "move":
                self.move(stroke[1], stroke[2])
            elif kind == "button":
                event = X.ButtonPress if stroke[2] else X.ButtonRelease
                xtest.fake_input(self._display, event, stroke[1])
            elif kind == "keys":
                self._keys(stroke[1], stroke[2])
            elif kind == "type":
                self._type(list(stroke[1]))
            elif kind == "settle":
                self._display.sync()
                self._settle()
            else:
                raise ValueError(f"there is no stroke {kind!r}")
        self._display.sync()

    def move(self, x: float, y: float) -> None:
        xtest.fake_input(self._display, X.MotionNotify, x=int(x), y=int(y))

    def _keys(self, way: str, wanted: Sequence[int]) -> None:
        self._provide(wanted)
        strokes = [self._codes[keysym] for keysym in wanted]
        codes = [code for code, _ in strokes]
        # In ctrl+A the capital asks for shift; alone, as in ctrl+c, the letter does not.
        if any(shift for _, shift in strokes):
            codes.insert(0, self._codes[SHIFT][0])
        if way != "up":
            for code in codes:
                xtest.fake_input(self._display, X.KeyPress, code)
        if way != "down":
            for code in reversed(codes):
                xtest.fake_input(self._display, X.KeyRelease, code)

    def _type(self, text: list[int]) -> None:
        is_locked = CAPS_LOCK in self._codes and self._caps_lock()
        if is_locked:  # off for so long: what is typed is what is meant
            self._tap(CAPS_LOCK)
        while text:
            part = self._part(text)
            if not part:
                raise RuntimeError("this keyboard has no spare keycode for a character it lacks")
            self._provide(part)
            for keysym in part:
                self._tap(keysym)
            text = text[len(part) :]
        if is_locked:
            self._tap(CAPS_LOCK)

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
        shift_code = self._codes[SHIFT][0]
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
        given = dict(zip(free, missing))  # noqa: B905  (Python 3.8)
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
        given: dict[int, int] = {}
        for i, syms in enumerate(self._mapping):
            code = self._first + i
            if all(sym == 0 or sym >= _VENDOR for sym in syms):
                self._spare[code] = None
                continue
            if _was_given(syms):
                given[code] = syms[0]
                continue
            for level in (0, 1):
                if syms[level]:
                    self._codes.setdefault(syms[level], (code, level == 1))
        self._keyboard = frozenset(self._codes)  # what is there without a spare keycode
        for code, keysym in given.items():
            # Who gave it, in an earlier process, may have pressed it a moment ago.
            self._spare[code] = keysym
            self._fresh.add(code)
            self._codes.setdefault(keysym, (code, False))


def _was_given(syms: Sequence[int]) -> bool:
    """Whether ``_provide`` mapped a keycode so: one character with and without shift, and no other.
    A keyboard's keys have another with shift, or none. The server drops levels beyond four."""
    first = syms[0]
    is_character = 0x20 < first < 0x100 or first > 0x1000000
    return is_character and syms[1] == first and set(syms) <= {first, 0}


def rest(grab: Callable[[], bytes]) -> None:
    """Until the screen has not changed for a moment: what was typed has arrived."""
    deadline = time.monotonic() + REST_LIMIT_S
    pixels, changed_at = grab(), time.monotonic()
    while time.monotonic() - changed_at < REST_S and time.monotonic() < deadline:
        time.sleep(0.01)
        new = grab()
        if new != pixels:
            pixels, changed_at = new, time.monotonic()


def windows(display: Any) -> list[dict[str, Any]]:
    """The window manager's, lowest first, with the fields of ``screen.Window``."""
    root = display.screen().root
    active = property_of(display, root, "_NET_ACTIVE_WINDOW") or [0]
    found = []
    for window_id in property_of(display, root, CLIENT_LIST) or []:
        try:
            window = _describe(display, root, int(window_id))
        except (error.BadWindow, error.BadDrawable):
            continue  # closed since the list was read
        found.append({**window, "is_active": window_id == active[0]})
    return found


def _describe(display: Any, root: Any, window_id: int) -> dict[str, Any]:
    window = display.create_resource_object("window", window_id)
    geometry = window.get_geometry()
    corner = root.translate_coords(window, 0, 0)
    title = _text(display, window, "_NET_WM_NAME") or _text(display, window, "WM_NAME")
    return {
        "window_id": window_id,
        "title": title,
        "wm_class": tuple(window.get_wm_class() or ("", "")),
        "x": corner.x,
        "y": corner.y,
        "width": geometry.width,
        "height": geometry.height,
    }


def _text(display: Any, window: Any, name: str) -> str:
    value = property_of(display, window, name)
    if value is None or isinstance(value, str):
        return value or ""
    return bytes(value).decode("utf-8", "replace")


def property_of(display: Any, window: Any, name: str) -> Any:
    """An array of numbers, a text or bytes; None where there is none."""
    found = window.get_full_property(display.intern_atom(name), X.AnyPropertyType)
    return None if found is None else found.value  # an array of longs is empty, not None


def main(verb: str, given: str) -> Any:
    """``perform`` with strokes, or ``windows``. Where the pointer was and is, or the windows."""
    connection = display.Display()
    root, size = connection.screen().root, connection.screen()

    def grab() -> bytes:
        area = (0, 0, size.width_in_pixels, size.height_in_pixels)
        pixels: bytes = root.get_image(*area, X.ZPixmap, 0xFFFFFFFF).data
        return pixels

    def pointer() -> list[int]:
        found = root.query_pointer()
        return [found.root_x, found.root_y]

    if verb == "windows":
        return windows(connection)
    before = pointer()
    XInput(connection, settle=lambda: rest(grab)).perform(json.loads(given))
    return [before, pointer()]


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # python-xlib prints warnings
        answer = main(*sys.argv[1:])
    sys.stdout.write(json.dumps(answer))
