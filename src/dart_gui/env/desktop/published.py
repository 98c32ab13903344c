"""What our guest server has and OSWorld's has not, by the routes that both have: typed actions, windows,
and waiting for the screen.

Actions and windows are one constant program, ``x11.py``, run by ``POST /execute`` with the strokes as an
argument; another, ``rest.py``, says whether the desktop rests. The screen is waited for by comparing
screenshots here.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

from PIL import Image

from dart_gui.env.desktop.screen import Frame, Window, check
from dart_gui.env.desktop.strokes import Stroke, strokes
from dart_gui.env.desktop.watch import Clock, Condition, Outcome, Sleep, Watcher
from dart_gui.env.refusal import ActionRefused
from dart_gui.errors import EnvError, boundary
from dart_gui.types import Action

PYTHONS = ("python3", "python")
"""Names of the guest's Python: OSWorld's own server and clients use the one or the other."""
MAX_KEYSYMS = 8000
"""Of one run: an argument of a program has 128 KiB at most."""
CURSOR = 64
"""Pixels to each side of the pointer that are not compared: the pictures show it."""
PAUSES_S = (0.1, 0.3, 1.0, 2.0)
"""Before a picture is asked for again: OSWorld's server has it made by a program (gnome-screenshot) that
now and then leaves none where the one before is hardly done, and answers 500."""
_NO_PYTHON, _NO_XLIB = "No such file", "No module named 'Xlib'"


class NoPictureError(EnvError):
    """The guest answers, and has no picture of its screen now."""


class Done(Protocol):
    @property
    def returncode(self) -> int: ...
    @property
    def output(self) -> str: ...
    @property
    def error(self) -> str: ...


@cache
def program(source: str = "x11.py") -> str:
    return files("dart_gui.env.desktop").joinpath(source).read_text(encoding="utf-8")


class PublishedGuest:
    """One desktop by OSWorld's routes: ``picture`` is ``/screenshot`` and may raise
    ``NoPictureError``, ``execute`` a command by ``/execute``, ``size`` what ``/screen_size`` says.
    Methods raise ``EnvError``."""

    def __init__(
        self,
        *,
        picture: Callable[[], Awaitable[bytes]],
        execute: Callable[[list[str]], Awaitable[Done]],
        size: Callable[[], Awaitable[tuple[int, int]]],
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._picture = picture
        self._execute = execute
        self._ask_size = size
        self._clock = clock
        self._sleep = sleep
        self._size: tuple[int, int] | None = None
        self._python: str | None = None
        self._seen = b""  # the newest screenshot
        self._before: bytes | None = None  # the one before the newest action
        self._hidden: list[tuple[int, int]] = []  # where the pointer was then, and is

    async def act(self, action: Action) -> str | None:
        """Carry out an action; why it was refused, untouched."""
        self._size = self._size or await self._ask_size()
        width, height = self._size
        try:
            check(action, width=width, height=height)
        except ActionRefused as refusal:
            return str(refusal)
        # Not the newest that was seen: the screen may have changed while the model thought.
        self._before = await self._look()
        for part in _parts(strokes(action, width=width, height=height)):
            before, after = await self._run("perform", json.dumps(part))
            self._hidden = [(before[0], before[1]), (after[0], after[1])]
        return None

    async def windows(self) -> list[Window]:
        found = await self._run("windows", "")
        return [Window(**{**w, "wm_class": (w["wm_class"][0], w["wm_class"][1])}) for w in found]

    async def screenshot(self) -> bytes:
        self._seen = await self._look()
        return self._seen

    async def settled(self, condition: Condition) -> tuple[bytes, Outcome]:
        """A screenshot once the screen has reacted to the newest action and rests."""
        since = None if self._before is None else await self._frame(self._before)
        outcome = await self._watcher().wait(condition, since=since)
        return self._seen, outcome

    async def wait(self, condition: Condition) -> Outcome:
        return await self._watcher().wait(condition)

    async def await_rest(self, rest_s: float, limit_s: float) -> bool:
        return bool(await self._run(f"{rest_s:g}", f"{limit_s:g}", source="rest.py"))

    async def _look(self) -> bytes:
        for pause_s in PAUSES_S:
            try:
                return await self._picture()
            except NoPictureError:
                await self._sleep(pause_s)
        return await self._picture()

    def _watcher(self) -> Watcher:
        return Watcher(self._grab, self.windows, clock=self._clock, sleep=self._sleep)

    async def _grab(self) -> Frame:
        return await self._frame(await self.screenshot())

    async def _frame(self, png: bytes) -> Frame:
        return await asyncio.to_thread(decode, png, self._hidden)

    async def _run(self, verb: str, given: str, *, source: str = "x11.py") -> Any:
        """The program's answer, by the first Python of the guest that has python-xlib. Another is tried
        only where the program did not begin: nothing is done twice."""
        said = []
        for python in (self._python,) if self._python else PYTHONS:
            try:
                done = await self._execute([python, "-c", program(source), verb, given])
            except EnvError as error:
                if _NO_PYTHON not in str(error):
                    raise
                said.append(str(error))
                continue
            if done.returncode == 0:
                self._python = python
                with boundary(EnvError, f"the guest's answer to {verb}, {done.output[:200]!r}"):
                    return json.loads(done.output)
            said.append(f"{python}: {done.error.strip()[-300:]}")
            if _NO_XLIB not in done.error:
                break
        raise EnvError(
            "this guest has no POST /action, and by POST /execute, which takes a Python with python-xlib "
            f"in the guest, {verb} failed: {'; '.join(said)}"
        )


def _parts(played: Sequence[Stroke]) -> list[list[Stroke]]:
    """The strokes in runs; a long text is several."""
    if not played or played[0][0] != "type":
        return [list(played)] if played else []
    keysyms = played[0][1]
    starts = range(0, len(keysyms), MAX_KEYSYMS)
    return [[("type", keysyms[start : start + MAX_KEYSYMS])] for start in starts]


def decode(png: bytes, hidden: Sequence[tuple[int, int]] = ()) -> Frame:
    """Without what is near the pointer. Raises ``EnvError`` for what is no picture."""
    with boundary(EnvError, "the desktop's screenshot is no picture"):
        image = Image.open(io.BytesIO(png)).convert("RGB")
        for x, y in hidden:
            image.paste(0, (x - CURSOR, y - CURSOR, x + CURSOR, y + CURSOR))
        return Frame(pixels=image.tobytes("raw", "BGRX"), width=image.width, height=image.height)
