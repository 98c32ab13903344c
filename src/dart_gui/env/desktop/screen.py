"""What the guest server needs of a display, whoever draws it: an X server, or a fake."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Annotated, Protocol

from PIL import Image
from pydantic import Field, TypeAdapter

from dart_gui.env.desktop.keys import keysyms, text_keysyms
from dart_gui.env.refusal import check_points
from dart_gui.types import (
    Action,
    CallUser,
    Finished,
    Hotkey,
    KeyDown,
    KeyUp,
    Press,
    TypeText,
)

# By its kind: of a union without, the first whose fields are all optional takes anything.
ACTION: TypeAdapter[Action] = TypeAdapter(Annotated[Action, Field(discriminator="kind")])
"""Between an action and JSON."""
PNG_LEVEL = 1
"""zlib level: 6 takes half as long again and saves a sixth of the bytes of an office window."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One picture of the whole screen."""

    pixels: bytes  # [height, width, 4], blue green red and one byte unused
    width: int
    height: int

    def png(self) -> bytes:
        image = Image.frombuffer("RGB", (self.width, self.height), self.pixels, "raw", "BGRX", 0, 1)
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=PNG_LEVEL)
        return file.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A top-level window, as the window manager lists it."""

    window_id: int
    title: str
    wm_class: tuple[str, str]  # instance, class
    x: int  # of the content, in screen pixels
    y: int
    width: int
    height: int
    is_active: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowQuery:
    """Which window is meant: by a part of its title, or by its class."""

    name: str
    strict: bool = False  # the whole title, case included
    by_class: bool = False  # WM_CLASS as ``instance.class``, or either of the two

    def matches(self, window: Window) -> bool:
        if self.by_class:
            names = (*window.wm_class, ".".join(window.wm_class))
            if self.strict:
                return self.name in names
            return any(self.name.lower() in name.lower() for name in names)
        if self.strict:
            return window.title == self.name
        return self.name.lower() in window.title.lower()


class Screen(Protocol):
    """A display with a pointer and a keyboard. Not for two threads at once."""

    width: int
    height: int

    def grab(self, *, cursor: bool) -> Frame: ...

    def cursor_position(self) -> tuple[int, int]: ...

    def perform(self, action: Action) -> None:
        """Carry out an action that ``check`` passed."""
        ...

    def windows(self) -> list[Window]:
        """Lowest first."""
        ...

    def activate(self, window_id: int) -> None:
        """Ask the window manager to raise and focus a window."""
        ...

    def close_window(self, window_id: int) -> None:
        """Ask a window to close, as its close button does."""
        ...

    def close(self) -> None: ...


def check(action: Action, *, width: int, height: int) -> None:
    """Refuse what cannot be carried out, before any part of it has happened.

    Raises:
        ActionRefused: a point outside the screen, a key that does not exist, a control character.
        ValueError: ``Finished`` or ``CallUser``, which are not for the screen.
    """
    if isinstance(action, Finished | CallUser):
        raise ValueError(f"{action.kind} is for the runner to answer, not for the screen")
    check_points(action, width=width, height=height)
    match action:
        case Hotkey(keys=keys):
            keysyms(keys)
        case Press(key=key) | KeyDown(key=key) | KeyUp(key=key):
            keysyms([key])
        case TypeText(text=text):
            text_keysyms(text)
