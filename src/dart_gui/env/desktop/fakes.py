"""A screen without a display: what is done to it shows on it, and nothing else does."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from dart_gui.env.desktop.screen import Frame, Window
from dart_gui.types import Action, Click, Drag, Hover, Scroll, TypeText


class FakeScreen:
    """One colour that is a function of all actions so far, and a white pixel as the pointer."""

    def __init__(self, *, width: int = 320, height: int = 200) -> None:
        self.width, self.height = width, height
        self.actions: list[Action] = []
        self.typed = ""
        self.open_windows: list[Window] = []
        self._pointer = (width - 1, height - 1)

    def grab(self, *, cursor: bool) -> Frame:
        digest = hashlib.sha256(repr(self.actions).encode()).digest()
        pixels = np.empty((self.height, self.width, 4), np.uint8)
        pixels[:] = [*digest[:3], 0]
        if cursor:
            x, y = self._pointer
            pixels[y, x] = 255
        return Frame(pixels=pixels.tobytes(), width=self.width, height=self.height)

    def cursor_position(self) -> tuple[int, int]:
        return self._pointer

    def perform(self, action: Action) -> None:
        self.actions.append(action)
        match action:
            case Click(point=point) | Hover(point=point) | Drag(end=point):
                self._pointer = (int(point.x), int(point.y))
            case Scroll(point=point) if point is not None:
                self._pointer = (int(point.x), int(point.y))
            case TypeText(text=text):
                self.typed += text

    def windows(self) -> list[Window]:
        return list(self.open_windows)

    def activate(self, window_id: int) -> None:
        others = [window for window in self.open_windows if window.window_id != window_id]
        chosen = [window for window in self.open_windows if window.window_id == window_id]
        self.open_windows = [replace(window, is_active=False) for window in others]
        self.open_windows += [replace(window, is_active=True) for window in chosen]

    def close_window(self, window_id: int) -> None:
        self.open_windows = [w for w in self.open_windows if w.window_id != window_id]

    def close(self) -> None:
        pass
