"""The ``computer_use`` tool calls of Qwen2.5-VL and Qwen3-VL, as a grammar and as agents.

    Action: <one sentence>
    <tool_call>
    {"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [x, y]}}
    </tool_call>

Qwen3-VL points on a screen of 1000 x 1000, whatever its size (0 to 999 on either axis); Qwen2.5-VL
in pixels of its resized image. :func:`parse` never raises, and all or none of a reply's calls are
taken. A drag starts where the call says, else where the reply last pointed. :func:`render` writes the
canonical text: ``parse(render(thought, actions)) == (thought, actions)`` up to the rounding of points.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from dart_gui.agent.agent import Agent
from dart_gui.agent.geometry import Geometry
from dart_gui.agent.grammar import ParsedReply
from dart_gui.agent.prompts import disarm_control_tokens
from dart_gui.agent.syntax import ReplyError, excerpt, strip_end_tokens
from dart_gui.types import (
    Action,
    CallUser,
    Click,
    Drag,
    Finished,
    Hotkey,
    Hover,
    Point,
    Press,
    Scroll,
    TypeText,
    Wait,
)

TOOL = "computer_use"
GRID = 999  # the largest coordinate of Qwen3-VL's screen
SCROLL_PIXELS = 100  # as a call writes one step of the wheel
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_HEAD = re.compile(r"\s*Action:[^\S\n]*")
_EXPECTED = f'expected <tool_call>{{"name": "{TOOL}", "arguments": {{...}}}}</tool_call>'


class Coordinates(StrEnum):
    GRID = "grid"  # 0 to 999 over the screen, as Qwen3-VL has it
    IMAGE = "image"  # pixels of the resized image, as Qwen2.5-VL has it

    def to_screen(self, x: float, y: float, geometry: Geometry) -> Point:
        """Raises ValueError where they are not finite."""
        if self is Coordinates.IMAGE:
            return geometry.to_screen(x, y)
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"coordinates must be finite, got ({x}, {y})")
        return Point(x / GRID * geometry.screen_width, y / GRID * geometry.screen_height)

    def to_model(self, point: Point, geometry: Geometry) -> tuple[int, int]:
        """``(x, y)``, rounded; inverts :meth:`to_screen` on integers."""
        if self is Coordinates.IMAGE:
            return geometry.to_model(point)
        x = round(point.x / geometry.screen_width * GRID)
        return x, round(point.y / geometry.screen_height * GRID)


def parse(reply: str, geometry: Geometry, coordinates: Coordinates) -> ParsedReply:
    """Read a reply. Never raises; points are in screen pixels and may lie outside of the screen."""
    text = strip_end_tokens(reply)
    calls = _CALL.findall(text)
    thought = _HEAD.sub("", text.partition("<tool_call>")[0], count=1).strip()
    if not calls:
        came = excerpt(text.strip()) if text.strip() else "an empty reply"
        return ParsedReply(thought, (), f"{_EXPECTED}, got {came}")
    reader = _Reader(geometry, coordinates)
    try:
        return ParsedReply(thought, tuple(reader.read(call) for call in calls), None)
    except ReplyError as error:
        return ParsedReply(thought, (), str(error))


def render(
    thought: str, actions: Sequence[Action], geometry: Geometry, coordinates: Coordinates
) -> str:
    """The canonical text of a reply.

    Raises:
        ValueError: there is no action, or one has no spelling.
    """
    if not actions:
        raise ValueError("a reply needs at least one action")
    if "<tool_call>" in thought or thought != thought.strip():
        raise ValueError("a thought holds no tool call, and no space around it")
    calls = []
    for action in actions:
        arguments = _arguments(action, lambda point: list(coordinates.to_model(point, geometry)))
        call = json.dumps({"name": TOOL, "arguments": arguments}, ensure_ascii=False)
        # the end of the call is looked for before the JSON is read
        body = call.replace("</", "<\\/")
        calls.append(f"<tool_call>\n{body}\n</tool_call>")
    head = f"Action: {thought}\n" if thought else ""
    return head + "\n".join(calls)


# --- reading -------------------------------------------------------------------------------


class _Reader:
    """The calls of one reply, in order."""

    def __init__(self, geometry: Geometry, coordinates: Coordinates) -> None:
        self._geometry = geometry
        self._coordinates = coordinates
        self._pointer: Point | None = None

    def read(self, call: str) -> Action:
        arguments = _load(call)
        name = arguments.get("action")
        read = _READERS.get(name) if isinstance(name, str) else None
        if read is None:
            raise ReplyError(
                f"action must be one of {', '.join(_READERS)}, got {excerpt(str(name))}"
            )
        action = read(self, arguments)
        match action:
            case Click(point=point) | Hover(point=point) | Drag(end=point):
                self._pointer = point
        return action

    def point(self, arguments: Mapping[str, Any], key: str = "coordinate") -> Point:
        value: Any = arguments.get(key)
        is_pair = isinstance(value, list) and len(value) == 2
        if not is_pair or not all(type(item) in (int, float) for item in value):
            raise ReplyError(
                f"{arguments['action']} needs {key}: [x, y], got {excerpt(repr(value))}"
            )
        try:
            return self._coordinates.to_screen(float(value[0]), float(value[1]), self._geometry)
        except (ValueError, OverflowError) as error:
            raise ReplyError(f"{key} cannot be used: {excerpt(str(error), 120)}") from None

    def drag(self, arguments: Mapping[str, Any]) -> Action:
        end = self.point(arguments)
        if "start_coordinate" in arguments:
            return Drag(start=self.point(arguments, "start_coordinate"), end=end)
        if self._pointer is None:
            raise ReplyError(
                "left_click_drag needs start_coordinate: [x, y], or a mouse_move before it"
            )
        return Drag(start=self._pointer, end=end)


def _load(call: str) -> dict[str, Any]:
    try:
        tree = json.loads(call)
    except (ValueError, RecursionError) as error:
        raise ReplyError(f"the tool call is not JSON: {excerpt(str(error), 120)}") from None
    arguments = tree.get("arguments") if isinstance(tree, dict) else None
    if not isinstance(arguments, dict) or tree.get("name") != TOOL:
        raise ReplyError(f"{_EXPECTED}, got {excerpt(call.strip())}")
    return arguments


def _text(arguments: Mapping[str, Any]) -> str:
    value = arguments.get("text")
    if not isinstance(value, str):
        raise ReplyError(f"{arguments['action']} needs text, got {excerpt(repr(value))}")
    return value


def _keys(_: _Reader, arguments: Mapping[str, Any]) -> Action:
    keys = arguments.get("keys")
    if not isinstance(keys, list) or not keys or not all(isinstance(key, str) for key in keys):
        raise ReplyError(f'key needs keys: ["ctrl", "c"], got {excerpt(repr(keys))}')
    if not all(keys):
        raise ReplyError("key got the name of a key that is empty")
    return Press(key=keys[0]) if len(keys) == 1 else Hotkey(keys=tuple(keys))


def _scroll(reader: _Reader, arguments: Mapping[str, Any]) -> Action:
    """Positive pixels scroll up, as the wheel does; those of hscroll to the right."""
    pixels: Any = arguments.get("pixels")
    if type(pixels) not in (int, float) or pixels == 0 or pixels != pixels:
        raise ReplyError(f"{arguments['action']} needs pixels, not 0, got {excerpt(repr(pixels))}")
    point = reader.point(arguments) if "coordinate" in arguments else None
    if arguments["action"] == "hscroll":
        return Scroll(direction="right" if pixels > 0 else "left", point=point)
    return Scroll(direction="up" if pixels > 0 else "down", point=point)


def _terminate(_: _Reader, arguments: Mapping[str, Any]) -> Action:
    match arguments.get("status"):
        case "success":
            return Finished()
        case "failure":
            return CallUser()
        case other:
            raise ReplyError(
                f"terminate needs status: success or failure, got {excerpt(repr(other))}"
            )


_READERS: Mapping[str, Callable[[_Reader, Mapping[str, Any]], Action]] = {
    "left_click": lambda reader, arguments: Click(point=reader.point(arguments)),
    "right_click": lambda reader, arguments: Click(point=reader.point(arguments), button="right"),
    "double_click": lambda reader, arguments: Click(point=reader.point(arguments), count=2),
    "mouse_move": lambda reader, arguments: Hover(point=reader.point(arguments)),
    "left_click_drag": _Reader.drag,
    "key": _keys,
    "type": lambda _, arguments: TypeText(text=_text(arguments)),
    "scroll": _scroll,
    "hscroll": _scroll,
    "wait": lambda *_: Wait(),
    "terminate": _terminate,
    "answer": lambda _, arguments: Finished(text=_text(arguments)),
}


# --- writing -------------------------------------------------------------------------------


def _arguments(action: Action, at: Callable[[Point], list[int]]) -> dict[str, Any]:
    match action:
        case Click(point=point, button="left", count=1):
            return {"action": "left_click", "coordinate": at(point)}
        case Click(point=point, button="left", count=2):
            return {"action": "double_click", "coordinate": at(point)}
        case Click(point=point, button="right", count=1):
            return {"action": "right_click", "coordinate": at(point)}
        case Hover(point=point):
            return {"action": "mouse_move", "coordinate": at(point)}
        case Drag(start=start, end=end):
            places = {"start_coordinate": at(start), "coordinate": at(end)}
            return {"action": "left_click_drag", **places}
        case Scroll(direction=direction, point=point):
            name = "hscroll" if direction in ("left", "right") else "scroll"
            pixels = SCROLL_PIXELS if direction in ("up", "right") else -SCROLL_PIXELS
            place = {"coordinate": at(point)} if point is not None else {}
            return {"action": name, **place, "pixels": pixels}
        case Hotkey(keys=keys) if len(keys) > 1 and all(keys):
            return {"action": "key", "keys": list(keys)}
        case Press(key=key) if key:
            return {"action": "key", "keys": [key]}
        case TypeText(text=text):
            return {"action": "type", "text": text}
        case Wait():
            return {"action": "wait", "time": 1}
        case Finished(text=""):
            return {"action": "terminate", "status": "success"}
        case Finished(text=text):
            return {"action": "answer", "text": text}
        case CallUser():
            return {"action": "terminate", "status": "failure"}
    raise ValueError(f"the computer_use tool has no spelling for {action}")


# --- the agents ----------------------------------------------------------------------------

_PROMPT = """\
You operate a computer. From a task, the actions so far and the screenshots, choose what to do next.

## Output Format
Action: what you do, and to what, in one sentence in {language}.
<tool_call>
{{"name": "computer_use", "arguments": {{"action": ..., ...}}}}
</tool_call>

## Actions and their arguments
left_click, right_click, double_click, mouse_move: coordinate [x, y]
left_click_drag: start_coordinate [x, y], coordinate [x, y]
scroll: pixels, above 0 for up and below for down; coordinate [x, y] where it matters
hscroll: pixels, above 0 for right and below for left; coordinate [x, y] where it matters
key: keys, a list such as ["ctrl", "c"]
type: text
wait: time, in seconds
answer: text, which ends the task with an answer
terminate: status, "success" or "failure"

## Note
- {screen}
- To submit what you type, end text with \\n.

## User Instruction
"""


class Qwen3Agent(Agent):
    """``computer_use`` on a screen of 1000 x 1000."""

    coordinates = Coordinates.GRID
    screen = "The screen is 1000 x 1000: [0, 0] is its top left, [999, 999] its bottom right."

    def first_prompt(self, instruction: str) -> str:
        line = " ".join(part for part in disarm_control_tokens(instruction).splitlines() if part)
        return _PROMPT.format(language=self.language, screen=self.screen) + line.strip()

    def parse(self, reply: str, geometry: Geometry) -> ParsedReply:
        return parse(reply, geometry, self.coordinates)


class Qwen25Agent(Qwen3Agent):
    """``computer_use`` in pixels of the image."""

    coordinates = Coordinates.IMAGE
    screen = "A coordinate is in pixels of the newest screenshot, [0, 0] at its top left."
