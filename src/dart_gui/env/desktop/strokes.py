"""Typed actions as strokes: what pointer and keyboard do, for whoever plays them (``x11.XInput``)."""

from __future__ import annotations

from typing import Any

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
Stroke = tuple[Any, ...]
"""As ``x11.XInput.perform`` takes it, and ready for JSON."""


def strokes(action: Action, *, width: int, height: int) -> list[Stroke]:
    """Raises ``ActionRefused`` for keys that do not exist and ``ValueError`` for what is not for a
    screen, which ``screen.check`` finds before."""
    match action:
        case Click():
            return [_move(action.point.x, action.point.y)] + action.count * _click(
                _BUTTONS[action.button]
            )
        case Hover(point=point):
            return [_move(point.x, point.y)]
        case Drag():
            return _drag(action)
        case Scroll(direction=direction, point=point):
            x, y = (point.x, point.y) if point else (width / 2, height / 2)
            return [_move(x, y)] + SCROLL_CLICKS * _click(_WHEEL[direction])
        case TypeText(text=text):
            return [("type", text_keysyms(text))]
        case Hotkey(keys=keys):
            return [("keys", "tap", keysyms(keys))]
        case Press(key=key):
            return [("keys", "tap", keysyms([key]))]
        case KeyDown(key=key):
            return [("keys", "down", keysyms([key]))]
        case KeyUp(key=key):
            return [("keys", "up", keysyms([key]))]
        case Wait():
            return []
        case _:
            raise ValueError(f"{action.kind} never reaches the screen")


def _move(x: float, y: float) -> Stroke:
    return ("move", int(x), int(y))


def _click(button: int) -> list[Stroke]:
    return [("button", button, True), ("button", button, False)]


def _drag(action: Drag) -> list[Stroke]:
    start, end = action.start, action.end
    moves = [
        _move(start.x + share * (end.x - start.x), start.y + share * (end.y - start.y))
        for share in (i / DRAG_MOVES for i in range(1, DRAG_MOVES + 1))
    ]
    # What is dragged and where it is dropped talk to each other: when it is picked up, and before it is
    # let go. A release that comes in between drops nothing.
    held = [*moves[:2], ("settle",), *moves[2:], ("settle",)]
    return [_move(start.x, start.y), ("button", 1, True), *held, ("button", 1, False)]
