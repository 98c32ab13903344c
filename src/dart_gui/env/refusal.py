"""Which actions a screen cannot take, whatever carries them out."""

from __future__ import annotations

from dart_gui.types import Action, Click, Drag, Hover, Point, Scroll


class ActionRefused(ValueError):
    """The action cannot be carried out; the text is for the agent."""


def check_points(action: Action, *, width: int, height: int) -> None:
    """Raise ``ActionRefused`` where a point of ``action`` is outside the screen."""
    for point in _points(action):
        if not (0 <= point.x < width and 0 <= point.y < height):
            raise ActionRefused(
                f"the point ({point.x:g}, {point.y:g}) is outside the {width} x {height} screen"
            )


def _points(action: Action) -> tuple[Point, ...]:
    match action:
        case Click(point=point) | Hover(point=point):
            return (point,)
        case Drag(start=start, end=end):
            return (start, end)
        case Scroll(point=Point() as point):
            return (point,)
        case _:
            return ()
