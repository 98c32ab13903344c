"""UI-TARS replies to typed actions and back.

:func:`parse` maps coordinates of the model's image to screen pixels and never raises: what is wrong
is said in :attr:`ParsedReply.error`, for the agent to read. :func:`render` writes the canonical
text, and ``parse(render(thought, actions)) == (thought.strip(), actions)`` up to the rounding of
points to the integer pixels of the model's image.

The rules of the text, escapes included, are in :mod:`dart_gui.agent.syntax`. Since spaces and ``+``
separate keys, the space bar is written ``space`` and the plus key ``plus``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dart_gui.agent.geometry import Geometry
from dart_gui.agent.syntax import (
    Call,
    ReplyError,
    escape_thought,
    excerpt,
    quote,
    read_calls,
    split_reply,
)
from dart_gui.types import (
    Action,
    CallUser,
    Click,
    Drag,
    Finished,
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

_BOX_MARKUP = re.compile(r"<\|box_(?:start|end)\|>|</?(?:point|bbox)>|[()\[\]]")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_KEY_SEPARATOR = re.compile(r"[\s+]+")
_EXPECTED = "expected `Thought: ...` and then `Action: name(...)`"


@dataclass(frozen=True, slots=True)
class ParsedReply:
    """What a reply asks for. All or nothing: with an ``error`` there are no actions."""

    thought: str
    actions: tuple[Action, ...]
    error: str | None


def parse(reply: str, geometry: Geometry) -> ParsedReply:
    """Read a reply. Never raises; points are in screen pixels and may lie outside of the screen."""
    thought, section = split_reply(reply)
    if section is None:
        came = excerpt(reply.strip()) if reply.strip() else "an empty reply"
        return ParsedReply(thought, (), f"{_EXPECTED}, got {came}")
    try:
        actions = tuple(_to_action(call, geometry) for call in read_calls(section))
    except ReplyError as error:
        return ParsedReply(thought, (), str(error))
    return ParsedReply(thought, actions, None)


def render(thought: str, actions: Sequence[Action], geometry: Geometry) -> str:
    """The canonical text of a reply.

    Raises:
        ValueError: there is no action, or one has no spelling: a double click of the right button,
            a point that is not finite, a key that is empty or holds a separator of keys.
    """
    if not actions:
        raise ValueError("a reply needs at least one action")
    calls = "\n\n".join(_render_action(action, geometry) for action in actions)
    head = f"Thought: {escape_thought(thought)}\n" if thought.strip() else ""
    return f"{head}Action: {calls}"


# --- reading -------------------------------------------------------------------------------


def _to_action(call: Call, geometry: Geometry) -> Action:
    match call.name:
        case "click":
            return Click(point=_point(call, "start_box", geometry))
        case "left_double":
            return Click(point=_point(call, "start_box", geometry), count=2)
        case "right_single":
            return Click(point=_point(call, "start_box", geometry), button="right")
        case "hover":
            return Hover(point=_point(call, "start_box", geometry))
        case "drag":
            start = _point(call, "start_box", geometry)
            return Drag(start=start, end=_point(call, "end_box", geometry))
        case "scroll":
            return _scroll(call, geometry)
        case "hotkey":
            return Hotkey(keys=_keys(call))
        case "press":
            keys = _keys(call)
            return Press(key=keys[0]) if len(keys) == 1 else Hotkey(keys=keys)
        case "keydown":
            return KeyDown(key=_one_key(call))
        case "keyup":
            return KeyUp(key=_one_key(call))
        case "type":
            if "content" not in call.arguments:
                raise ReplyError("type(...) needs content='...', which is missing")
            return TypeText(text=call.arguments["content"])
        case "finished":
            return Finished(text=call.arguments.get("content", ""))
        case "wait":
            return Wait()
        case "call_user":
            return CallUser()
    raise AssertionError(f"{call.name} has a signature and no action")


def _point(call: Call, parameter: str, geometry: Geometry) -> Point:
    """The point of a 2-number box, or the centre of a 4-number one."""
    value = call.arguments.get(parameter)
    if value is None:
        raise ReplyError(f"{call.name}(...) needs {parameter}='(x,y)', which is missing")
    parts = _BOX_MARKUP.sub(" ", value).replace(",", " ").split()
    if len(parts) not in (2, 4) or not all(map(_NUMBER.fullmatch, parts)):
        raise ReplyError(f"{call.name}(...) needs {parameter}='(x,y)', got {excerpt(value)}")
    numbers = [float(part) for part in parts]
    try:
        return geometry.to_screen(
            sum(numbers[0::2]) / len(numbers[0::2]), sum(numbers[1::2]) / len(numbers[1::2])
        )
    except (ValueError, OverflowError) as error:
        raise ReplyError(
            f"{call.name}(...) cannot use {parameter}: {excerpt(str(error), 120)}"
        ) from None


def _keys(call: Call) -> tuple[str, ...]:
    """Keys separated by spaces or ``+``; a ``+`` at the end is the plus key."""
    value = call.arguments.get("key")
    if not value:
        raise ReplyError(
            f"{call.name}(...) needs key='...', e.g. key='ctrl c', which is missing or empty"
        )
    text = value.strip()
    if not text:
        return ("space",)
    plus_at_end = text.endswith("+")
    keys = [key for key in _KEY_SEPARATOR.split(text) if key] + ["plus"] * plus_at_end
    return tuple("+" if key == "plus" else key for key in keys)


def _one_key(call: Call) -> str:
    keys = _keys(call)
    if len(keys) > 1:
        raise ReplyError(f"{call.name}(...) takes one key, got {excerpt(call.arguments['key'])}")
    return keys[0]


def _scroll(call: Call, geometry: Geometry) -> Scroll:
    has_point = bool(call.arguments.get("start_box", "").strip())
    point = _point(call, "start_box", geometry) if has_point else None
    match call.arguments.get("direction", "").strip().lower():
        case "up" | "down" | "left" | "right" as direction:
            return Scroll(direction=direction, point=point)
        case other:
            raise ReplyError(
                f"scroll(...) needs direction='down', 'up', 'left' or 'right', got {excerpt(other)}"
            )


# --- writing -------------------------------------------------------------------------------


def _render_action(action: Action, geometry: Geometry) -> str:
    match action:
        case Click(point=point, button="left", count=1):
            return f"click(start_box={_render_box(point, geometry)})"
        case Click(point=point, button="left", count=2):
            return f"left_double(start_box={_render_box(point, geometry)})"
        case Click(point=point, button="right", count=1):
            return f"right_single(start_box={_render_box(point, geometry)})"
        case Hover(point=point):
            return f"hover(start_box={_render_box(point, geometry)})"
        case Drag(start=start, end=end):
            boxes = (_render_box(start, geometry), _render_box(end, geometry))
            return f"drag(start_box={boxes[0]}, end_box={boxes[1]})"
        case Scroll(direction=direction, point=None):
            return f"scroll(direction='{direction}')"
        case Scroll(direction=direction, point=Point() as point):
            return f"scroll(start_box={_render_box(point, geometry)}, direction='{direction}')"
        case Hotkey(keys=keys):
            return f"hotkey(key={_render_keys(keys)})"
        case Press(key=key) | KeyDown(key=key) | KeyUp(key=key):
            return f"{action.kind}(key={_render_keys((key,))})"
        case TypeText(text=text):
            return f"type(content={quote(text)})"
        case Finished(text=text):
            return f"finished(content={quote(text)})" if text else "finished()"
        case Wait() | CallUser():
            return f"{action.kind}()"
    raise ValueError(f"the UI-TARS grammar has no spelling for {action}")


def _render_box(point: Point, geometry: Geometry) -> str:
    try:
        x, y = geometry.to_model(point)
    except OverflowError:
        raise ValueError(f"cannot write {point}: coordinates must be finite") from None
    return f"'<|box_start|>({x},{y})<|box_end|>'"


def _render_keys(keys: Sequence[str]) -> str:
    spelled = [{"+": "plus", " ": "space"}.get(key, key) for key in keys]
    if not spelled or any(not key or _KEY_SEPARATOR.search(key) for key in spelled):
        raise ValueError(f"cannot write the keys {tuple(keys)}: one is empty or holds a separator")
    return quote(" ".join(spelled))
