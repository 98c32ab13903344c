from __future__ import annotations

import pytest

from dart_gui.env.desktop.keys import key_keysym, keysyms, text_keysyms
from dart_gui.env.desktop.screen import Frame, Window, WindowQuery, check
from dart_gui.env.refusal import ActionRefused
from dart_gui.types import (
    Action,
    CallUser,
    Click,
    Drag,
    Finished,
    Hotkey,
    KeyDown,
    Point,
    Press,
    Scroll,
    TypeText,
    Wait,
)


@pytest.mark.parametrize(
    ("name", "keysym"),
    [
        ("a", 0x61),
        ("A", 0x41),
        ("<", 0x3C),
        ("\n", 0xFF0D),
        ("Return", 0xFF0D),
        ("page_down", 0xFF56),
        ("Page Down", 0xFF56),
        ("ctrl", 0xFFE3),
        ("F12", 0xFFC9),
        ("cmd", 0xFFEB),
        (" ", 0x20),
    ],
)
def test_names_of_keys(name: str, keysym: int) -> None:
    assert key_keysym(name) == keysym


@pytest.mark.parametrize("name", ["", "hyper", "F13", "ä", "\x1b", "ab"])
def test_there_is_no_such_key(name: str) -> None:
    with pytest.raises(ActionRefused, match="no key"):
        key_keysym(name)


def test_a_hotkey_without_keys_is_refused() -> None:
    with pytest.raises(ActionRefused, match="at least one"):
        keysyms([])


def test_characters_of_a_text() -> None:
    # Latin-1 is its own keysym; beyond it, 0x01000000 plus the code point.
    assert text_keysyms("aé日😀") == [0x61, 0xE9, 0x010065E5, 0x0101F600]
    assert text_keysyms("a\r\nb\rc\n\t") == [0x61, 0xFF0D, 0x62, 0xFF0D, 0x63, 0xFF0D, 0xFF09]
    assert text_keysyms("\ud800") == [ord("?")]


@pytest.mark.parametrize("text", ["a\x07", "\x1b[A", "\x00", "\x85"])
def test_control_characters_cannot_be_typed(text: str) -> None:
    with pytest.raises(ActionRefused, match="control character"):
        text_keysyms(text)


@pytest.mark.parametrize(
    "action",
    [
        Click(point=Point(10, 5)),
        Click(point=Point(5, -1)),
        Drag(start=Point(1, 1), end=Point(3, 20)),
        Scroll(direction="up", point=Point(float("nan"), 1)),
        Press(key="nokey"),
        KeyDown(key="nokey"),
        Hotkey(keys=("ctrl", "nokey")),
        TypeText(text="\x03"),
    ],
    ids=repr,
)
def test_what_a_screen_cannot_take_is_refused(action: Action) -> None:
    with pytest.raises(ActionRefused):
        check(action, width=10, height=10)


@pytest.mark.parametrize(
    "action", [Click(point=Point(9.5, 0)), Scroll(direction="up"), Wait(), TypeText(text="")]
)
def test_what_a_screen_can_take_passes(action: Action) -> None:
    check(action, width=10, height=10)


@pytest.mark.parametrize("action", [Finished(), CallUser()])
def test_words_to_the_runner_are_a_mistake(action: Action) -> None:
    with pytest.raises(ValueError, match=action.kind):
        check(action, width=10, height=10)


WINDOW = Window(
    window_id=1,
    title="notes.txt - Mousepad",
    wm_class=("mousepad", "Mousepad"),
    x=0,
    y=0,
    width=5,
    height=5,
    is_active=True,
)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (WindowQuery(name="NOTES"), True),
        (WindowQuery(name="NOTES", strict=True), False),
        (WindowQuery(name="notes.txt - Mousepad", strict=True), True),
        (WindowQuery(name="mousepad.Mousepad", by_class=True, strict=True), True),
        (WindowQuery(name="pad", by_class=True), True),
        (WindowQuery(name="pad", by_class=True, strict=True), False),
        (WindowQuery(name="notes", by_class=True), False),
    ],
)
def test_which_window_is_meant(query: WindowQuery, expected: bool) -> None:
    assert query.matches(WINDOW) is expected


def test_a_frame_becomes_a_picture_of_the_same_colours() -> None:
    import io

    from PIL import Image

    pixels = bytes([0, 0, 255, 7, 0, 255, 0, 7])  # red, green; the fourth byte says nothing
    image = Image.open(io.BytesIO(Frame(pixels=pixels, width=2, height=1).png()))
    assert image.size == (2, 1)
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (0, 255, 0)]
