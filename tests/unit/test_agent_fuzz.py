"""Whatever a model says: reading it never raises, gives typed actions or one error, and settles at once:
what is read, written down and read again is the same."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from dart_gui.agent.geometry import Geometry, ImageLimits
from dart_gui.agent.grammar import ParsedReply, parse, render
from dart_gui.agent.syntax import (
    SIGNATURES,
    Call,
    ReplyError,
    escape_thought,
    quote,
    read_calls,
    split_reply,
    strip_end_tokens,
)
from dart_gui.types import Action

ACTION: TypeAdapter[Action] = TypeAdapter(Action)
GEOMETRIES = [
    Geometry(160, 210, ImageLimits(56 * 56, 28 * 28 * 1280)),
    Geometry(1920, 1080, ImageLimits(100 * 28 * 28, 16384 * 28 * 28)),
    Geometry(3, 5, ImageLimits(1, 10**6)),
    Geometry(1000, 1, ImageLimits(1, 10**6)),  # no model can be shown this screen
]
geometries = st.sampled_from(GEOMETRIES)

# Pieces of which something like a reply is made: what the grammar knows, and what it does not.
NAMES = st.sampled_from([*SIGNATURES, "select", "release", "Click", "fly", "__import__"])
NUMBERS = st.one_of(
    st.integers(-10, 3000).map(str),
    st.floats(allow_nan=True, allow_infinity=True).map(str),
    st.sampled_from(["1e3", "+5", "٣", "9" * 400, "", "."]),
)
BOXES = st.builds(
    lambda form, numbers: form.format(",".join(numbers)),
    st.sampled_from(["({})", "[{}]", "<|box_start|>({})<|box_end|>", "<point>{}</point>", "{}"]),
    st.lists(NUMBERS, min_size=1, max_size=5),
)
WORDS = st.one_of(
    st.text(max_size=12), st.sampled_from(["ctrl c", "ctrl++", " ", "up", "Down", "\\n"])
)
VALUES = st.one_of(BOXES, WORDS, st.tuples(BOXES, WORDS).map("".join))
STRINGS = st.one_of(
    VALUES,
    VALUES.map(quote),
    VALUES.map(lambda value: f"'{value}'"),
    VALUES.map(lambda value: f'"{value}"'),
    VALUES.map(lambda value: f"'{value}"),
)
PARAMETERS = st.sampled_from(
    ["", "start_box=", "end_box =", "direction=", "key=", "content= ", "point=", "box="]
)
CALLS = st.builds(
    lambda name, arguments, close: f"{name}({','.join(arguments)}{close}",
    NAMES,
    st.lists(st.builds(str.__add__, PARAMETERS, STRINGS), max_size=3),
    st.sampled_from([")", ")", ")", "", " ,)"]),
)
FITTING = {
    "start_box": st.lists(
        st.integers(-10, 3000) | st.floats(-10, 3000), min_size=2, max_size=2
    ).map(lambda numbers: f"({numbers[0]},{numbers[1]})"),
    "direction": st.sampled_from(["up", "Down", "left", " right "]),
    "key": st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=3).map(" ".join),
    "content": st.text(max_size=20),
}
FITTING["end_box"] = FITTING["start_box"]


@st.composite
def good_calls(draw: st.DrawFn) -> str:
    name = draw(st.sampled_from(list(SIGNATURES)))
    values = [(parameter, quote(draw(FITTING[parameter]))) for parameter in SIGNATURES[name]]
    return f"{name}({', '.join(f'{parameter}={value}' for parameter, value in values)})"


REPLIES = st.builds(
    lambda head, thought, action, calls, gap, tail: (
        head + thought + action + gap.join(calls) + tail
    ),
    st.sampled_from(["Thought: ", "Thought：", ""]),  # noqa: RUF001
    st.text(max_size=20),
    st.sampled_from(["\nAction: ", "Action: ", "\n  Action :", "\n\\Action: "]),
    st.one_of(st.lists(good_calls(), min_size=1, max_size=3), st.lists(CALLS, max_size=3)),
    st.sampled_from(["\n\n", ";", " ", "\nAction: ", " # x\n", ""]),
    st.sampled_from(["", "<|im_end|>", "\n", " trailing"]),
)

many = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def is_well_formed(parsed: ParsedReply) -> bool:
    """Actions of the closed set, exactly as typed, or an error that an agent can read."""
    for action in parsed.actions:
        assert ACTION.validate_python(action) == action
        if "\\ud" not in repr(action):  # halves of characters are mended before they come here
            assert ACTION.validate_json(ACTION.dump_json(action)) == action
    if parsed.error is not None:
        assert parsed.error.isprintable()
        assert len(parsed.error) < 300
    return (parsed.error is None) == bool(parsed.actions)


@many
@given(REPLIES | st.text(max_size=60), geometries)
@example("Action: type(content='\ud800')", GEOMETRIES[0])
@example("Action: press(key='+ +')", GEOMETRIES[0])
@example("Action: hotkey(key=\"'plus' space\")", GEOMETRIES[0])
def test_reading_settles_at_once(reply: str, geometry: Geometry) -> None:
    parsed = parse(reply, geometry)
    assert is_well_formed(parsed)
    if parsed.error is not None:
        return
    text = render(parsed.thought, parsed.actions, geometry)
    again = parse(text, geometry)
    assert again.error is None
    assert again.thought == parsed.thought.strip()
    assert [type(action) for action in again.actions] == [type(action) for action in parsed.actions]
    # Points were rounded to the pixels of the model's image, once: from here on nothing moves.
    assert render(again.thought, again.actions, geometry) == text
    assert parse(text, geometry) == again


@many
@given(st.one_of(REPLIES, CALLS, st.text(max_size=60)))
def test_the_shape_is_read_or_refused(text: str) -> None:
    thought, section = split_reply(text)
    assert thought in text or "\\" in text
    assert section is None or section in text
    try:
        calls = read_calls(text if section is None else section)
    except ReplyError:
        return
    assert calls
    for call in calls:
        assert isinstance(call, Call)
        assert set(call.arguments) <= set(SIGNATURES[call.name])
        assert all(isinstance(value, str) for value in call.arguments.values())


@many
@given(st.text())
def test_quoting_and_end_tokens(text: str) -> None:
    (call,) = read_calls(f"type(content={quote(text)})")
    assert call.arguments == {"content": text}
    stripped = strip_end_tokens(text + "<|im_end|>\n<|endoftext|>")
    assert strip_end_tokens(stripped) == stripped
    thought, section = split_reply(f"Thought: {escape_thought(text)}\nAction: wait()")
    assert section == "Action: wait()"
    assert thought == text.strip()


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_ten_thousand_tokens_of_pieces(data: st.DataObject) -> None:
    """A reply as long as a context, made of few pieces again and again."""
    pieces = data.draw(st.lists(REPLIES | CALLS, min_size=1, max_size=4))
    reply = "".join(pieces) * (40_000 // max(1, len("".join(pieces))) + 1)
    parsed = parse(reply, GEOMETRIES[0])
    assert is_well_formed(parsed)
    assert len(json.dumps(parsed.error)) < 2_000
