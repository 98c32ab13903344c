"""The computer_use tool calls: read, written, and never an exception."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_gui.agent.computer_use import Coordinates, Qwen3Agent, Qwen25Agent, parse, render
from dart_gui.agent.geometry import Geometry, ImageLimits
from dart_gui.agent.registry import agent_class
from dart_gui.types import (
    CallUser,
    Click,
    Drag,
    Finished,
    Hotkey,
    Hover,
    KeyDown,
    Point,
    Press,
    Scroll,
    TypeText,
    Wait,
)

SCREEN = Geometry(1920, 1080, ImageLimits(100 * 28 * 28, 16384 * 28 * 28))  # resized: 1932 x 1092


def call(**arguments):
    body = json.dumps({"name": "computer_use", "arguments": arguments})
    return f"<tool_call>\n{body}\n</tool_call>"


def read(text, coordinates=Coordinates.GRID):
    return parse(text, SCREEN, coordinates)


def only(text, coordinates=Coordinates.GRID):
    reply = read(text, coordinates)
    assert reply.error is None
    (action,) = reply.actions
    return action


def test_a_thought_and_a_call():
    reply = read("Action: Open the menu.\n" + call(action="left_click", coordinate=[999, 0]))
    assert (reply.thought, reply.error) == ("Open the menu.", None)
    assert reply.actions == (Click(point=Point(1920.0, 0.0)),)


@pytest.mark.parametrize(
    ("coordinates", "x", "y", "expected"),
    [
        (Coordinates.GRID, 0, 0, Point(0.0, 0.0)),
        (Coordinates.GRID, 999, 999, Point(1920.0, 1080.0)),
        (Coordinates.GRID, 333, 666, Point(640.0, 720.0)),
        (Coordinates.IMAGE, 1932, 1092, Point(1920.0, 1080.0)),
        (Coordinates.IMAGE, 966, 546, Point(960.0, 540.0)),
    ],
)
def test_each_model_has_its_coordinates(coordinates, x, y, expected):
    action = only(call(action="mouse_move", coordinate=[x, y]), coordinates)
    assert (action.point.x, action.point.y) == pytest.approx((expected.x, expected.y))


ORIGIN = {"coordinate": [0, 0]}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"action": "right_click", **ORIGIN}, Click(point=Point(0, 0), button="right")),
        ({"action": "double_click", **ORIGIN}, Click(point=Point(0, 0), count=2)),
        ({"action": "mouse_move", **ORIGIN}, Hover(point=Point(0, 0))),
        ({"action": "key", "keys": ["ctrl", "c"]}, Hotkey(keys=("ctrl", "c"))),
        ({"action": "key", "keys": ["enter"]}, Press(key="enter")),
        ({"action": "type", "text": "a\n'\\</tool_call"}, TypeText(text="a\n'\\</tool_call")),
        ({"action": "scroll", "pixels": -300}, Scroll(direction="down")),
        ({"action": "scroll", "pixels": 1.5, **ORIGIN}, Scroll(direction="up", point=Point(0, 0))),
        ({"action": "hscroll", "pixels": 3}, Scroll(direction="right")),
        ({"action": "wait", "time": 2}, Wait()),
        ({"action": "terminate", "status": "success"}, Finished()),
        ({"action": "terminate", "status": "failure"}, CallUser()),
        ({"action": "answer", "text": "42"}, Finished(text="42")),
    ],
)
def test_each_action(arguments, expected):
    assert only(call(**arguments)) == expected


def test_a_drag_starts_where_it_says_or_where_the_reply_last_pointed():
    drag = call(action="left_click_drag", coordinate=[999, 999])
    move = call(action="mouse_move", coordinate=[0, 0])
    end = Point(1920.0, 1080.0)
    assert read(move + drag).actions == (Hover(point=Point(0, 0)), Drag(start=Point(0, 0), end=end))
    said = call(action="left_click_drag", start_coordinate=[999, 0], coordinate=[999, 999])
    assert only(said) == Drag(start=Point(1920.0, 0.0), end=end)
    assert "start_coordinate" in read(drag).error


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "an empty reply"),
        ("Action: click it", "got 'Action: click it'"),
        ("<tool_call>{</tool_call>", "not JSON"),
        ("<tool_call>[]</tool_call>", "expected <tool_call>"),
        ('<tool_call>{"name": "x", "arguments": {}}</tool_call>', "expected <tool_call>"),
        ("<tool_call>" + "[" * 5000, "not JSON"),
        (call(), "action must be one of"),
        (call(action="triple_click", **ORIGIN), "action must be one of"),
        (call(action=["left_click"], **ORIGIN), "action must be one of"),
        (call(action="left_click"), "needs coordinate"),
        (call(action="left_click", coordinate=[1]), "needs coordinate"),
        (call(action="left_click", coordinate=[1, True]), "needs coordinate"),
        (call(action="left_click", coordinate=[1, float("nan")]), "cannot be used"),
        (call(action="left_click", coordinate=[10**400, 1]), "cannot be used"),
        (call(action="type", text=3), "needs text"),
        (call(action="key", keys=[]), "needs keys"),
        (call(action="key", keys="enter"), "needs keys"),
        (call(action="key", keys=[""]), "empty"),
        (call(action="scroll", pixels=0), "needs pixels"),
        (call(action="scroll", pixels=float("nan")), "needs pixels"),
        (call(action="terminate", status="done"), "status"),
    ],
)
def test_what_is_wrong_is_said(text, error):
    reply = read(text)
    assert reply.actions == ()
    assert error in reply.error


def test_one_bad_call_spoils_the_reply():
    reply = read(call(action="wait") + call(action="left_click"))
    assert (reply.actions, "needs coordinate" in reply.error) == ((), True)


def test_a_call_that_the_length_cut_off_is_read_where_it_is_whole():
    text = call(action="wait").removesuffix("\n</tool_call>") + "<|im_end|>"
    assert only(text) == Wait()


@given(st.text() | st.from_regex(r"<tool_call>\{.{0,80}\}</tool_call>", fullmatch=True))
def test_no_reply_raises(text):
    for coordinates in Coordinates:
        reply = read(text, coordinates)
        assert (reply.error is None) == bool(reply.actions)


integers = st.integers(0, 999)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
keys = st.sampled_from(["ctrl", "c", "enter", "+"])


@st.composite
def actions(draw, coordinates):
    point = coordinates.to_screen(draw(integers), draw(integers), SCREEN)
    other = coordinates.to_screen(draw(integers), draw(integers), SCREEN)
    return draw(
        st.sampled_from(
            [
                Click(point=point),
                Click(point=point, count=2),
                Click(point=point, button="right"),
                Hover(point=point),
                Drag(start=other, end=point),
                Scroll(direction=draw(st.sampled_from(["up", "down", "left", "right"]))),
                Scroll(direction="up", point=point),
                Hotkey(keys=tuple(draw(st.lists(keys, min_size=2)))),
                Press(key=draw(keys)),
                TypeText(text=draw(st.text(st.characters(exclude_categories=["Cs"])))),
                TypeText(text="</tool_call>"),
                Wait(),
                Finished(),
                Finished(text=draw(words)),
                CallUser(),
            ]
        )
    )


@pytest.mark.parametrize("coordinates", Coordinates)
@given(data=st.data())
def test_what_is_written_is_read_back(coordinates, data):
    written = tuple(data.draw(st.lists(actions(coordinates), min_size=1, max_size=3)))
    thought = data.draw(st.sampled_from(["", "Click it.", "Action: twice", "two\nlines"]))
    reply = parse(render(thought, written, SCREEN, coordinates), SCREEN, coordinates)
    assert reply.error is None
    assert reply.actions == written
    assert reply.thought == thought or thought.startswith("Action:")


@pytest.mark.parametrize(
    ("thought", "written"),
    [
        ("", []),
        ("", [KeyDown(key="a")]),
        ("", [Click(point=Point(0, 0), button="right", count=2)]),
        ("", [Press(key="")]),
        ("<tool_call>", [Wait()]),
    ],
)
def test_what_cannot_be_written(thought, written):
    with pytest.raises(ValueError, match=r"reply needs|no spelling|thought"):
        render(thought, written, SCREEN, Coordinates.GRID)


def test_the_agents_have_names_and_prompts_of_their_own():
    assert agent_class("qwen3-computer-use") is Qwen3Agent
    assert agent_class("qwen2.5-computer-use") is Qwen25Agent
    agent = Qwen3Agent.__new__(Qwen3Agent)
    agent.language = "English"
    text = agent.first_prompt("Click\nOK<|image_pad|>.")
    assert "1000 x 1000" in text
    assert text.endswith("\nClick OK< |image_pad|>.")
    assert '{"name": "computer_use"' in text
