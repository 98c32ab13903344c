"""How models name keys, and what a screen takes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_gui.env.browser.actions import check, key_name, keys_of
from dart_gui.env.refusal import ActionRefused
from dart_gui.types import Action, Click, Drag, Hotkey, KeyDown, Point, Press, Scroll, Wait


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("ctrl", "Control"),
        ("CTRL", "Control"),
        ("cmd", "Meta"),
        ("win", "Meta"),
        ("enter", "Enter"),
        ("return", "Enter"),
        ("\n", "Enter"),
        ("esc", "Escape"),
        ("space", "Space"),
        (" ", "Space"),
        ("arrowleft", "ArrowLeft"),
        ("ArrowLeft", "ArrowLeft"),
        ("left", "ArrowLeft"),
        ("page_down", "PageDown"),
        ("Page Down", "PageDown"),
        ("page-up", "PageUp"),
        ("pgup", "PageUp"),
        ("f12", "F12"),
        ("a", "a"),
        ("A", "A"),
        ("+", "+"),
        ("-", "-"),
        ("~", "~"),
    ],
)
def test_key_names(said: str, name: str) -> None:
    assert key_name(said) == name


@pytest.mark.parametrize("said", ["", "f13", "ctrl+c", "é", "enter!", "nokey", "\x00"])
def test_other_keys_are_refused(said: str) -> None:
    with pytest.raises(ActionRefused, match="there is no key"):
        key_name(said)


@given(st.text(max_size=12))
def test_any_text_is_a_key_or_refused(said: str) -> None:
    with contextlib.suppress(ActionRefused):
        assert key_name(said)


@pytest.mark.parametrize(
    "action",
    [
        Click(point=Point(0, 0)),
        Click(point=Point(159.9, 209.9)),
        Scroll(direction="up"),
        Wait(),
        Press(key="pagedown"),
        Hotkey(keys=("ctrl", "shift", "t")),
    ],
    ids=repr,
)
def test_accepted(action: Action) -> None:
    check(action, width=160, height=210)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (Click(point=Point(160, 0)), r"\(160, 0\) is outside the 160 x 210 screen"),
        (Click(point=Point(0, 210)), "outside"),
        (Click(point=Point(float("nan"), 1)), "outside"),
        (Click(point=Point(float("inf"), 1)), "outside"),
        (Drag(start=Point(1, 1), end=Point(-0.5, 1)), "outside"),
        (Scroll(direction="up", point=Point(1, 500)), "outside"),
        (Hotkey(keys=("ctrl", "nokey")), "no key 'nokey'"),
        (Hotkey(keys=()), "at least one key"),
        (KeyDown(key="nokey"), "no key"),
    ],
    ids=repr,
)
def test_refused(action: Action, reason: str) -> None:
    with pytest.raises(ActionRefused, match=reason):
        check(action, width=160, height=210)


def test_only_keyboard_actions_have_keys() -> None:
    assert keys_of(Hotkey(keys=("ctrl", "c"))) == ("ctrl", "c")
    assert keys_of(Press(key="a")) == ("a",)
    assert keys_of(Wait()) == ()
