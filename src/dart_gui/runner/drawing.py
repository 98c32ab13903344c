"""Actions drawn on the screenshots that they refer to."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence

from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont
from PIL.Image import Image

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
    Observation,
    Point,
    Press,
    Scroll,
    TypeText,
    Wait,
)

__all__ = ["Image", "annotate", "contact_sheet", "describe", "reaches_environment", "visible"]

_SMALL_PX = 400  # a screen narrower than this is enlarged
_ENLARGE = 3
_MARK = (220, 0, 60)
_PAPER = (255, 255, 255)
_INK = (30, 30, 30)
_CAPTION_PX = 20
_FONT_PX = 13
_SHEET_COLUMNS = 4
_GAP_PX = 8
_MAX_LINE = 160  # characters; more fit nowhere
_ARROWS = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


def reaches_environment(action: Action) -> bool:
    """False for the two actions that the runner answers itself."""
    return not isinstance(action, Finished | CallUser)


def describe(action: Action) -> str:
    """One line: ``click (57, 103)``, ``type 'ann'``."""
    match action:
        case Click(point=point, button=button, count=count):
            name = "double click" if count == 2 else "click"
            return f"{'right ' if button == 'right' else ''}{name} {_at(point)}"
        case Hover(point=point):
            return f"hover {_at(point)}"
        case Drag(start=start, end=end):
            return f"drag {_at(start)} -> {_at(end)}"
        case Scroll(direction=direction, point=point):
            return f"scroll {direction}" + (f" {_at(point)}" if point else "")
        case Hotkey(keys=keys):
            return f"hotkey {visible('+'.join(keys))}"
        case Press(key=key) | KeyDown(key=key) | KeyUp(key=key):
            return f"{action.kind} {visible(key)}"
        case TypeText(text=text):
            return f"type {text!r}"
        case Finished(text=text):
            return f"finished {text!r}" if text else "finished"
        case Wait() | CallUser():
            return action.kind
    raise ValueError(f"unknown action {action}")


def visible(text: str) -> str:
    r"""``text`` with what does not print written as an escape: a terminal would obey it.

    >>> visible("a\x1b[2J")
    'a\\x1b[2J'
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def annotate(
    observation: Observation, actions: Sequence[Action], *, note: str | None = None
) -> Image:
    """The screenshot, enlarged if it is small, with marks for points and captions for the rest."""
    with PillowImage.open(io.BytesIO(observation.screenshot)) as opened:
        frame = opened.convert("RGB")
    scale = _ENLARGE if frame.width < _SMALL_PX else 1
    frame = frame.resize(
        (frame.width * scale, frame.height * scale), PillowImage.Resampling.NEAREST
    )
    draw = ImageDraw.Draw(frame)
    for number, action in enumerate(actions, start=1):
        label = str(number) if len(actions) > 1 else ""
        _draw_action(draw, action, scale=scale, label=label)
    captions = [describe(action) for action in actions if not _has_point(action)]
    captions += [f"not parsed: {note}"] if note else []
    _draw_captions(draw, captions, frame.width, frame.height)
    return frame


def contact_sheet(frames: Sequence[tuple[Image, str]], *, title: str) -> Image:
    """Frames and their captions in rows of four under a title."""
    cell_w = max(frame.width for frame, _ in frames)
    cell_h = max(frame.height for frame, _ in frames) + _CAPTION_PX
    columns = min(_SHEET_COLUMNS, len(frames))
    rows = math.ceil(len(frames) / columns)
    width = columns * (cell_w + _GAP_PX) + _GAP_PX
    top = _CAPTION_PX + _GAP_PX
    sheet = PillowImage.new("RGB", (width, top + rows * (cell_h + _GAP_PX)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP_PX, 4), _fit(title, width - 2 * _GAP_PX), fill=_INK, font=_font())
    for index, (frame, caption) in enumerate(frames):
        row, column = divmod(index, columns)
        x, y = _GAP_PX + column * (cell_w + _GAP_PX), top + row * (cell_h + _GAP_PX)
        draw.text((x, y), _fit(caption, cell_w), fill=_INK, font=_font())
        sheet.paste(frame, (x, y + _CAPTION_PX))
    return sheet


def _draw_action(draw: ImageDraw.ImageDraw, action: Action, *, scale: int, label: str) -> None:
    match action:
        case Click(point=point, count=count):
            _ring(draw, point, scale, label=label)
            if count == 2:
                _ring(draw, point, scale, radius=13, label="")
        case Hover(point=point):
            _cross(draw, point, scale, label=label)
        case Drag(start=start, end=end):
            _ring(draw, start, scale, label=label)
            _arrow(draw, _scaled(start, scale), _scaled(end, scale))
        case Scroll(direction=direction, point=Point() as point):
            x, y = _scaled(point, scale)
            dx, dy = _ARROWS[direction]
            _arrow(draw, (x, y), (x + 30 * dx, y + 30 * dy))


def _has_point(action: Action) -> bool:
    match action:
        case Click() | Hover() | Drag() | Scroll(point=Point()):
            return True
    return False


def _ring(
    draw: ImageDraw.ImageDraw, point: Point, scale: int, *, label: str, radius: int = 8
) -> None:
    x, y = _scaled(point, scale)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=_MARK, width=3)
    draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=_MARK)
    if label:
        draw.text((x + radius + 2, y - radius - 4), label, fill=_MARK, font=_font())


def _cross(draw: ImageDraw.ImageDraw, point: Point, scale: int, *, label: str) -> None:
    x, y = _scaled(point, scale)
    draw.line((x - 9, y, x + 9, y), fill=_MARK, width=2)
    draw.line((x, y - 9, x, y + 9), fill=_MARK, width=2)
    if label:
        draw.text((x + 10, y - 12), label, fill=_MARK, font=_font())


def _arrow(draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float]) -> None:
    draw.line((*start, *end), fill=_MARK, width=3)
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    for side in (angle + 2.6, angle - 2.6):
        tip = (end[0] + 12 * math.cos(side), end[1] + 12 * math.sin(side))
        draw.line((*end, *tip), fill=_MARK, width=3)


def _draw_captions(
    draw: ImageDraw.ImageDraw, captions: Sequence[str], width: int, height: int
) -> None:
    top = height - _CAPTION_PX * len(captions)
    for line, caption in enumerate(captions):
        y = top + line * _CAPTION_PX
        draw.rectangle((0, y, width, y + _CAPTION_PX), fill=_PAPER)
        draw.text((4, y + 3), _fit(caption, width - 8), fill=_MARK, font=_font())


def _fit(text: str, width: int) -> str:
    """``text`` on one line, cut where it would not fit."""
    line = " ".join(text.split())[:_MAX_LINE]
    font = _font()
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."


@functools.cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=_FONT_PX)


def _scaled(point: Point, scale: int) -> tuple[float, float]:
    """The middle of the pixel in the enlarged picture."""
    return (point.x + 0.5) * scale, (point.y + 0.5) * scale


def _at(point: Point) -> str:
    return f"({round(point.x, 1):g}, {round(point.y, 1):g})"
