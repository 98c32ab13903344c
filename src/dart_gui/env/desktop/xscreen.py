"""An X display as a :class:`~dart_gui.env.desktop.screen.Screen`: shared-memory grabs, window
manager hints, and input through XTEST."""

from __future__ import annotations

import time
from collections.abc import Callable

import mss
from Xlib import X, display, error
from Xlib.protocol import event

from dart_gui.env.desktop import x11
from dart_gui.env.desktop.screen import Frame, Window
from dart_gui.env.desktop.strokes import strokes
from dart_gui.errors import EnvError
from dart_gui.types import Action

SOURCE_PAGER = 2
"""Who asks, in EWMH's words: a pager is obeyed, an application may be refused the focus."""


class XScreen:
    def __init__(self, name: str) -> None:
        """Connect to the X server ``name``, such as ``:0``.

        Raises:
            EnvError: it does not answer.
        """
        try:
            self._display = display.Display(name)
            # Two grabbers: whether a frame changed is asked of the screen without the pointer.
            self._plain = mss.MSS(display=name)
            self._with_cursor = mss.MSS(display=name, with_cursor=True)
        except (error.DisplayError, OSError, mss.ScreenShotError) as failure:
            raise EnvError(f"the X display {name} does not answer: {failure}") from None
        screen = self._display.screen()
        self._root = screen.root
        self.width, self.height = screen.width_in_pixels, screen.height_in_pixels
        self._input = x11.XInput(
            self._display, settle=lambda: x11.rest(lambda: self.grab(cursor=False).pixels)
        )

    def grab(self, *, cursor: bool) -> Frame:
        grabber = self._with_cursor if cursor else self._plain
        shot = grabber.grab(grabber.monitors[0])
        return Frame(pixels=bytes(shot.raw), width=shot.width, height=shot.height)

    def grabs_by(self) -> str:
        """How the grabber says that it works: by shared memory, or why not."""
        return "; ".join(self._plain.performance_status)

    def cursor_position(self) -> tuple[int, int]:
        pointer = self._root.query_pointer()
        return pointer.root_x, pointer.root_y

    def perform(self, action: Action) -> None:
        self._input.perform(strokes(action, width=self.width, height=self.height))

    def paint_root(self, rgb: int) -> None:
        """Fill the background: a screen that is black has not been painted yet."""
        self._root.change_attributes(background_pixel=rgb)
        self._root.clear_area()
        self._display.sync()

    def park_pointer(self) -> None:
        # Not in the corner itself, where pyautogui refuses to do anything.
        self._input.move(self.width - 2, self.height - 2)
        self._display.sync()

    def await_window_manager(
        self, *, timeout_s: float, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        """Until it keeps a list of windows; an application started earlier waits 5 s for it.

        Raises:
            EnvError: not within ``timeout_s``.
        """
        deadline = clock() + timeout_s
        while x11.property_of(self._display, self._root, x11.CLIENT_LIST) is None:
            if clock() > deadline:
                raise EnvError(f"no window manager set {x11.CLIENT_LIST} within {timeout_s:g} s")
            sleep(0.01)

    def windows(self) -> list[Window]:
        return [Window(**window) for window in x11.windows(self._display)]

    def activate(self, window_id: int) -> None:
        self._ask("_NET_ACTIVE_WINDOW", window_id, [SOURCE_PAGER, X.CurrentTime, 0, 0, 0])

    def close_window(self, window_id: int) -> None:
        self._ask("_NET_CLOSE_WINDOW", window_id, [X.CurrentTime, SOURCE_PAGER, 0, 0, 0])

    def close(self) -> None:
        self._plain.close()
        self._with_cursor.close()
        self._display.close()

    def _ask(self, message: str, window_id: int, data: list[int]) -> None:
        """Send a request to the window manager, which reads them at the root window."""
        window = self._display.create_resource_object("window", window_id)
        request = event.ClientMessage(
            window=window, client_type=self._display.intern_atom(message), data=(32, data)
        )
        mask = X.SubstructureRedirectMask | X.SubstructureNotifyMask
        self._root.send_event(request, event_mask=mask)
        self._display.sync()


def connect(name: str, *, timeout_s: float, alive: Callable[[], bool]) -> XScreen:
    """:class:`XScreen` as soon as the server answers.

    Raises:
        EnvError: the server ended, or does not answer within ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return XScreen(name)
        except EnvError:
            if not alive() or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
