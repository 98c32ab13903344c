"""Our actions and waits over published routes: what is asked of the guest, and what its answers mean."""

from __future__ import annotations

import ast
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from dart_gui.env.desktop import x11
from dart_gui.env.desktop.published import (
    CURSOR,
    MAX_KEYSYMS,
    PAUSES_S,
    NoPictureError,
    PublishedGuest,
    program,
)
from dart_gui.env.desktop.strokes import strokes
from dart_gui.env.desktop.watch import Condition
from dart_gui.errors import EnvError
from dart_gui.fakes import FakeClock
from dart_gui.types import Click, Drag, Hover, Point, Press, TypeText, Wait


@dataclass
class Ran:
    returncode: int = 0
    output: str = "[[5, 5], [5, 5]]"
    error: str = ""


def picture(*dots: tuple[int, int, str]) -> bytes:
    image = Image.new("RGB", (400, 200), "white")
    for x, y, color in dots:
        image.putpixel((x, y), {"red": (255, 0, 0), "blue": (0, 0, 255)}[color])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class Guest:
    """Shows pictures in order, the last one from then on; answers commands in order likewise."""

    def __init__(
        self, *answers: Ran | EnvError, shows: tuple[bytes | EnvError, ...] = (picture(),)
    ) -> None:
        self._answers = answers or (Ran(),)
        self.shows = shows
        self.commands: list[list[str]] = []
        self.num_looks = 0
        self.clock = FakeClock()

    async def picture(self) -> bytes:
        self.num_looks += 1
        shown = self.shows[min(self.num_looks, len(self.shows)) - 1]
        if isinstance(shown, EnvError):
            raise shown
        return shown

    async def execute(self, command: list[str]) -> Ran:
        self.commands.append(command)
        answer = self._answers[min(len(self.commands), len(self._answers)) - 1]
        if isinstance(answer, EnvError):
            raise answer
        return answer

    async def size(self) -> tuple[int, int]:
        return 400, 200

    def published(self) -> PublishedGuest:
        return PublishedGuest(
            picture=self.picture,
            execute=self.execute,
            size=self.size,
            clock=self.clock,
            sleep=self.clock.sleep,
        )


async def test_an_action_is_the_same_program_with_other_data() -> None:
    guest = Guest()
    published = guest.published()
    for action in (TypeText(text="'); import os #"), Press(key="enter")):
        assert await published.act(action) is None
    assert [command[:4] for command in guest.commands] == 2 * [
        ["python3", "-c", program(), "perform"]
    ]
    assert json.loads(guest.commands[0][4])[0][1][:3] == [0x27, 0x29, 0x3B]
    assert json.loads(guest.commands[1][4]) == [["keys", "tap", [0xFF0D]]]


def test_the_program_needs_nothing_of_this_project() -> None:
    tree = ast.parse(program(), feature_version=(3, 8))
    names = {
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert {str(name).split(".")[0] for name in names} <= {*sys.stdlib_module_names, "Xlib"}
    assert program() == Path(x11.__file__).read_text(encoding="utf-8")


async def test_a_picture_that_could_not_be_made_is_asked_for_again() -> None:
    none = NoPictureError("the desktop answered GET /screenshot with 500")
    guest = Guest(shows=(none, none, picture()))
    assert await guest.published().screenshot() == picture()
    guest = Guest(shows=(none,))
    with pytest.raises(NoPictureError, match="with 500"):
        await guest.published().screenshot()
    assert guest.num_looks == len(PAUSES_S) + 1
    guest = Guest(shows=(EnvError("did not answer within 30 s"), picture()))
    with pytest.raises(EnvError, match="30 s"):
        await guest.published().screenshot()


async def test_a_long_text_is_several_runs_that_fit_in_an_argument() -> None:
    guest = Guest()
    text = "世" * (2 * MAX_KEYSYMS + 1)
    await guest.published().act(TypeText(text=text))
    given = [json.loads(command[4])[0][1] for command in guest.commands]
    assert [len(part) for part in given] == [MAX_KEYSYMS, MAX_KEYSYMS, 1]
    assert max(len(command[4]) for command in guest.commands) < 128 << 10


async def test_what_is_refused_is_not_asked_of_the_guest() -> None:
    guest = Guest()
    published = guest.published()
    assert "outside" in str(await published.act(Click(point=Point(400, 0))))
    assert await published.act(Wait()) is None
    assert guest.commands == []


async def test_another_python_is_tried_only_where_nothing_was_done() -> None:
    no_python = EnvError("500: [Errno 2] No such file or directory: 'python3'")
    no_xlib = Ran(1, "", "ModuleNotFoundError: No module named 'Xlib'")
    for first in (no_python, no_xlib):
        guest = Guest(first, Ran())
        published = guest.published()
        await published.act(Press(key="a"))
        await published.act(Press(key="b"))
        assert [command[0] for command in guest.commands] == ["python3", "python", "python"]
    for last in (EnvError("no answer within 30 s"), Ran(1, "", "Xlib.error.DisplayError")):
        guest = Guest(last)
        with pytest.raises(EnvError):
            await guest.published().act(Press(key="a"))
        assert len(guest.commands) == 1
    with pytest.raises(EnvError, match="a Python with python-xlib"):
        await Guest(no_xlib).published().act(Press(key="a"))
    with pytest.raises(EnvError, match="answer to perform, 'nonsense'"):
        await Guest(Ran(0, "nonsense")).published().act(Press(key="a"))


async def test_a_change_counts_from_before_the_action_and_not_at_the_pointer() -> None:
    """The pointer went from (5, 5) to (100, 100): what it painted there is no reaction."""
    moved = Ran(0, "[[5, 5], [100, 100]]")
    before = picture((5, 5, "blue"))
    pointer = picture((100, 100, "blue"))
    reacted = picture((100, 100, "blue"), (100 + CURSOR, 100, "red"))
    guest = Guest(moved, shows=(before, *(pointer,) * 10, reacted))
    published = guest.published()
    await published.act(Hover(point=Point(100, 100)))
    png, outcome = await published.settled(Condition(stable_s=0.1, react_s=5.0, timeout_s=9.0))
    assert png == reacted
    assert outcome.met
    assert 0.25 < outcome.waited_s < 0.4  # 10 looks of 0.02 s, then still for 0.1 s


def test_strokes_are_ready_for_json() -> None:
    click = strokes(Click(point=Point(1.9, 2.2), count=2), width=9, height=9)
    press = ["button", 1, True], ["button", 1, False]
    assert json.loads(json.dumps(click)) == [["move", 1, 2], *press, *press]


def test_a_drag_rests_when_it_is_picked_up_and_before_it_is_let_go() -> None:
    """What takes part in it needs the time to answer: a file was not dropped otherwise."""
    drag = strokes(Drag(start=Point(0, 0), end=Point(80, 40)), width=99, height=99)
    kinds = [stroke[0] for stroke in drag]
    assert drag[:3] == [("move", 0, 0), ("button", 1, True), ("move", 10, 5)]
    assert kinds[3:5] == ["move", "settle"]
    assert drag[-3:] == [("move", 80, 40), ("settle",), ("button", 1, False)]
    assert kinds.count("settle") == 2


class Keyboard:
    """A display with a keyboard that remembers its mapping as an X server does: four levels are kept."""

    def __init__(self) -> None:
        self.mapping = {10: [0x61, 0x41, 0x61, 0x41, 0, 0], 11: [0xFFE1, 0, 0xFFE1, 0, 0, 0]}
        self.mapping |= {12: [0xFF08] * 4 + [0, 0], 13: [0x28, 0, 0x28, 0, 0, 0]}
        self.mapping |= {code: [0] * 6 for code in (14, 15)}
        self.display = self
        self.info = self
        self.min_keycode, self.max_keycode = 10, 15

    def get_keyboard_mapping(self, first: int, count: int) -> list[list[int]]:
        return [self.mapping[code] for code in range(first, first + count)]

    def change_keyboard_mapping(self, first: int, rows: list[list[int]]) -> None:
        for code, row in enumerate(rows, first):
            self.mapping[code] = [*row[:4], 0, 0]

    def sync(self) -> None:
        pass


def test_keycodes_that_an_earlier_process_gave_are_given_again_once_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed: list[int] = []
    keyboard = Keyboard()

    def fake_input(_: object, kind: int, detail: int = 0, **__: object) -> None:
        if kind == x11.X.KeyPress:
            typed.append(keyboard.mapping[detail][0])

    monkeypatch.setattr(x11.xtest, "fake_input", fake_input)
    settled: list[int] = []
    text = [0x1004E00, 0x1004E01]
    x11.XInput(keyboard, settle=lambda: settled.append(1)).perform([("type", text)])
    assert (typed, settled) == (text, [])
    second = x11.XInput(keyboard, settle=lambda: settled.append(len(typed)))
    second.perform([("type", [0x61, 0x28, 0x1004E01])])  # all there: no keycode changes hands
    assert settled == []
    second.perform([("type", [0x1004E02])])
    assert settled == [5]
    assert typed[2:] == [0x61, 0x28, 0x1004E01, 0x1004E02]
