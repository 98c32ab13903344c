import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dart_gui.agent.geometry import Geometry, ImageLimits
from dart_gui.agent.grammar import parse, render
from dart_gui.types import (
    Action,
    CallUser,
    Click,
    Drag,
    Finished,
    Hotkey,
    Hover,
    KeyDown,
    KeyUp,
    Point,
    Press,
    Scroll,
    TypeText,
    Wait,
)

# 280 x 140 is kept by smart_resize: model coordinates are screen pixels.
PLAIN = Geometry(280, 140, ImageLimits(1, 10**6))
P = Point(57.0, 103.0)
Q = Point(4.0, 8.0)
BOX = "'<|box_start|>(57,103)<|box_end|>'"
BOX_Q = "'<|box_start|>(4,8)<|box_end|>'"

CANONICAL: list[tuple[str, Action]] = [
    (f"click(start_box={BOX})", Click(point=P)),
    (f"left_double(start_box={BOX})", Click(point=P, count=2)),
    (f"right_single(start_box={BOX})", Click(point=P, button="right")),
    (f"hover(start_box={BOX})", Hover(point=P)),
    (f"drag(start_box={BOX}, end_box={BOX_Q})", Drag(start=P, end=Q)),
    (f"scroll(start_box={BOX}, direction='up')", Scroll(direction="up", point=P)),
    (f"scroll(start_box={BOX}, direction='left')", Scroll(direction="left", point=P)),
    ("scroll(direction='down')", Scroll(direction="down")),
    ("scroll(direction='right')", Scroll(direction="right")),
    ("hotkey(key='ctrl shift t')", Hotkey(keys=("ctrl", "shift", "t"))),
    ("hotkey(key='ctrl plus')", Hotkey(keys=("ctrl", "+"))),
    ("press(key='enter')", Press(key="enter")),
    ("press(key='\\'')", Press(key="'")),
    ("press(key='\\\\')", Press(key="\\")),
    ("keydown(key='shift')", KeyDown(key="shift")),
    ("keyup(key='shift')", KeyUp(key="shift")),
    ("type(content='')", TypeText(text="")),
    ("type(content='a\\'b\"c\\\\d\\n')", TypeText(text="a'b\"c\\d\n")),
    ("wait()", Wait()),
    ("finished()", Finished()),
    ("finished(content='42')", Finished(text="42")),
    ("call_user()", CallUser()),
]


def only(calls: str) -> Action:
    """The one action of a reply that must be readable."""
    parsed = parse(f"Thought: t\nAction: {calls}", PLAIN)
    assert parsed.error is None, parsed.error
    assert parsed.thought == "t"
    (action,) = parsed.actions
    return action


def error(reply: str) -> str:
    """The error of a reply that must not be readable."""
    parsed = parse(reply, PLAIN)
    assert parsed.actions == ()
    assert parsed.error is not None
    assert len(parsed.error) < 300
    return parsed.error


@pytest.mark.parametrize(("text", "action"), CANONICAL, ids=[text for text, _ in CANONICAL])
def test_canonical_text_and_action_are_the_same_thing(text: str, action: Action) -> None:
    assert only(text) == action
    assert render("t", [action], PLAIN) == f"Thought: t\nAction: {text}"


@pytest.mark.parametrize(
    "text",
    [
        "click(start_box='(57,103)')",
        "click(start_box='( 57 , 103 )')",
        'click(start_box="(57,103)")',
        "click(start_box='<|box_start|>(57, 103)<|box_end|>')",
        "click(start_box=<|box_start|>(57,103)<|box_end|>)",
        "click(start_box='[57,103]')",
        "click(start_box=[57, 103])",
        "click(start_box='57 103')",
        "click(point='<point>57 103</point>')",
        "click('(57,103)')",
        "click((57,103))",
        "click(start_box='(50,100,64,106)')",
        "click(start_box='<|box_start|>(50,100),(64,106)<|box_end|>')",
        "click(start_box='(57.0,+103.00)')",
        "left_single(start_box='(57,103)')",
        "Click ( start_box = '(57,103)' , )",
        "click(start_box='(57,103)') # the button",
    ],
)
def test_other_spellings_of_a_click(text: str) -> None:
    assert only(text) == Click(point=P)


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("select(start_box='(57,103)', end_box='(4,8)')", Drag(start=P, end=Q)),
        ("drag(end_box='(4,8)', start_box='(57,103)')", Drag(start=P, end=Q)),
        ("drag('(57,103)', '(4,8)')", Drag(start=P, end=Q)),
        ("drag(start_point='<point>57 103</point>', end_point='(4,8)')", Drag(start=P, end=Q)),
        ("scroll(direction='Down', start_box='')", Scroll(direction="down")),
        ("hotkey(hotkey='ctrl c')", Hotkey(keys=("ctrl", "c"))),
        ("hotkey(key='ctrl+c')", Hotkey(keys=("ctrl", "c"))),
        ("hotkey(key=' ctrl + c ')", Hotkey(keys=("ctrl", "c"))),
        ("hotkey(key='ctrl++')", Hotkey(keys=("ctrl", "+"))),
        ("hotkey(key='+')", Hotkey(keys=("+",))),
        ("hotkey(key=' ')", Hotkey(keys=("space",))),
        ("press(key='ctrl+c')", Hotkey(keys=("ctrl", "c"))),
        ("press_key(key='a')", Press(key="a")),
        ("key_down(key='a')", KeyDown(key="a")),
        ("release(key='a')", KeyUp(key="a")),
        ("type(text='a')", TypeText(text="a")),
        ("type(content=hello)", TypeText(text="hello")),
        ("finished(content='')", Finished()),
        ("right_click(start_box='(4,8)')", Click(point=Q, button="right")),
        ("click(start_box='(-5,9000)')", Click(point=Point(-5.0, 9000.0))),
    ],
)
def test_other_spellings(text: str, action: Action) -> None:
    assert only(text) == action


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        (r"'a\nb'", "a\nb"),
        ("'a\nb'", "a\nb"),
        ("'a\n\nb'", "a\n\nb"),
        (r"'run\n'", "run\n"),
        (r"'run\\n'", r"run\n"),
        (r"'C:\temp\xyz'", r"C:\temp\xyz"),
        (r"'C:\\new'", r"C:\new"),
        (r"'\u00e9 é 中 🎉'", r"\u00e9 é 中 🎉"),
        (r"'it\'s'", "it's"),
        ("'it's'", "it's"),
        ('"it\'s"', "it's"),
        (r'"a \"b\" c"', 'a "b" c'),
        ('"a "b" c"', 'a "b" c'),
        ("'print('a')'", "print('a')"),
        ("'f('a'); g('b')'", "f('a'); g('b')"),
        ("'Action: wait()'", "Action: wait()"),
        ("'x\nAction: wait()'", "x\nAction: wait()"),
        ("'<b>&amp;</b> {x} %s $(rm -rf)'", "<b>&amp;</b> {x} %s $(rm -rf)"),
        ("'a'''", "a''"),
        ("' a '", " a "),
        ("'\t\x00'", "\t\x00"),
    ],
)
def test_any_text_can_be_typed(text: str, typed: str) -> None:
    assert only(f"type(content={text})") == TypeText(text=typed)


@pytest.mark.parametrize(
    "separator",
    ["\n\n", "\n", "; ", ";", " ", "", "\r\n\r\n", "\n\nAction: ", " # first\n", "\n  \n"],
)
def test_several_actions_in_one_reply(separator: str) -> None:
    parsed = parse(
        f"Action: click(start_box='(57,103)'){separator}type(content='it's'){separator}wait()",
        PLAIN,
    )
    assert parsed.error is None
    assert parsed.actions == (Click(point=P), TypeText(text="it's"), Wait())


@pytest.mark.parametrize(
    ("reply", "thought"),
    [
        ("Action: wait()", ""),
        ("Thought:\nAction: wait()", ""),
        ("Thought: a\nb\n\nAction: wait()", "a\nb"),
        ("a\nAction: wait()", "a"),
        ("Thought: a Action: wait()", "a"),
        ("Thought: I said Action: press(key='a')\nAction: wait()", "I said Action: press(key='a')"),
        ("Thought: the\nAction: will wait\nAction: wait()", "the\nAction: will wait"),
        ("Thought: a\n  Action :\n wait()", "a"),
        ("Thought：a\nAction：wait()", "a"),  # noqa: RUF001
        ("Thought: Thought: a\nAction: wait()", "Thought: a"),
        ("Thought: '''\nAction: wait()<|im_end|>\n<|endoftext|>", "'''"),
    ],
)
def test_the_thought_ends_where_the_calls_begin(reply: str, thought: str) -> None:
    parsed = parse(reply, PLAIN)
    assert (parsed.thought, parsed.actions, parsed.error) == (thought, (Wait(),), None)


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("", "got an empty reply"),
        (" \n\t", "got an empty reply"),
        ("I would click.", r"expected `Thought: ...` and then `Action: name\(...\)`, got 'I would"),
        ("Thought: hm", "got 'Thought: hm'"),
        ("Thought: hm\nAction:", "got nothing"),
        ("Action: ;", "got nothing"),
        ("\x00\x1b[31m", r"got '\\x00\\x1b\[31m'"),
        ("Action: \x00", r"expected an action such as wait\(\), got '\\x00'"),
        ("Action: click", "got 'click'"),
        ("Action: click(", "needs start_box='\\(x,y\\)', which is missing|got the end"),
        ("Action: click()", r"click\(...\) needs start_box='\(x,y\)', which is missing"),
        ("Action: click(start_box='(1,2)'", "expected `,` or `\\)` in click\\(...\\), got the end"),
        ("Action: click(start_box='(1,2')x", "got 'x'"),
        ("Action: click(start_box='(1)')", "got '\\(1\\)'"),
        ("Action: click(start_box='(1,2,3)')", "got '\\(1,2,3\\)'"),
        ("Action: click(start_box='(1,nan)')", "got '\\(1,nan\\)'"),
        ("Action: click(start_box='(1,1e400)')", "got '\\(1,1e400\\)'"),
        (f"Action: click(start_box='({'9' * 400},1)')", "finite"),
        ("Action: click(start_box='(٣,1)')", "needs start_box"),
        ("Action: click(start_box=)", "expected a value in click"),
        ("Action: click(start_box='(1,2)', start_box='(1,2)')", "takes start_box once"),
        ("Action: click(box='(1,2)')", "takes start_box once, got 'box' too"),
        ("Action: drag(start_box='(1,2)')", "needs end_box"),
        ("Action: scroll(start_box='(1,2)')", "needs direction"),
        ("Action: scroll(direction='sideways')", "got 'sideways'"),
        ("Action: hotkey(key='')", "needs key"),
        ("Action: keydown(key='ctrl c')", "takes one key, got 'ctrl c'"),
        ("Action: type()", "needs content"),
        ("Action: type(content='abc", "has no end"),
        ("Action: wait(5)", r"wait\(\) takes no arguments"),
        ("Action: fly(to='moon')", "unknown action 'fly', expected one of click, left_double"),
        ("Action: wait()\n\nfly()", "unknown action 'fly'"),
        ("Action: wait() and then", "got 'and then'"),
        ("Action: __import__('os').system('ls')", "unknown action '__import__'"),
    ],
)
def test_an_unreadable_reply_says_what_was_expected_and_what_came(reply: str, message: str) -> None:
    assert re.search(message, error(reply)), error(reply)


def test_one_bad_call_spoils_the_reply() -> None:
    parsed = parse("Thought: t\nAction: wait()\n\nclick(start_box='here')", PLAIN)
    assert parsed.actions == ()
    assert parsed.thought == "t"


def test_a_screen_that_cannot_be_resized_is_an_error_of_the_reply() -> None:
    flat = Geometry(1000, 1, ImageLimits(1, 10**6))
    assert "at most 200 times" in (parse("Action: click(start_box='(1,2)')", flat).error or "")


@pytest.mark.parametrize(
    "reply",
    [
        "x" * 100_000,
        " " * 100_000,
        "\n" * 100_000,
        "\x00" * 100_000,
        "'" * 100_000,
        "\\" * 100_000,
        "Action:" * 15_000,
        "\nAction: a" * 10_000,
        "Action: " + "(" * 100_000,
        "Action: " + "a" * 100_000,
        "Action: wait" + " " * 100_000,
        "Action: type('" + "' )" * 30_000,
        "Action: type('" + "'     " * 20_000,
        "Action: " + "type('a')x" * 10_000,
        "Action: " + "type('a')type('b');" * 5_000,
        "Action: " + "Type('it's') " * 8_000,
        "Action: " + "click('a')click('b'," * 5_000,
        "Action: drag(" + "'a'," * 25_000,
        "Action: click(start_box='" + "1," * 50_000 + "')",
        "Action: click(start_box=" + "[" * 100_000,
        "Action: hotkey(key='" + "+ " * 50_000 + "')",
        "Action: wait()" + "<|im_end|>" * 10_000,
        "Action: wait()" + "#\n" * 50_000,
        "Action: type('" + "') # " * 20_000 + "x",
        "Action: type('" + "');;;;" * 20_000 + "x",
        "Action: wait()" * 7_000,
    ],
    ids=lambda reply: reply[:24],
)
def test_long_replies_take_linear_time(reply: str) -> None:
    begin = time.process_time()
    parsed = parse(reply, PLAIN)
    # About 0.1 s; a quadratic step over 100,000 characters takes minutes.
    assert time.process_time() - begin < 5.0
    assert (parsed.error is None) == bool(parsed.actions)
    assert len(parsed.error or "") < 300


ALPHABET = st.sampled_from(
    [
        *"'\"\\n\n\r(),;=# +1é🎉\x00",
        *(
            "Action:",
            "Thought:",
            "click(",
            "wait()",
            "start_box",
            "content=",
            "<|box_start|>",
            "')",
        ),
        *("type(content='", "<|im_end|>", "(1,2)", "<point>"),
    ]
)
NASTY = st.one_of(st.text(), st.lists(ALPHABET, max_size=30).map("".join))


@given(NASTY)
@settings(max_examples=200, deadline=None)
def test_parse_never_raises(reply: str) -> None:
    for text in (reply, "Action: " + reply, f"Thought: {reply}\nAction: wait()\n{reply}"):
        parsed = parse(text, PLAIN)
        assert (parsed.error is None) == bool(parsed.actions)


GEOMETRY = Geometry(1920, 1080, ImageLimits(100 * 28 * 28, 16384 * 28 * 28))
POINTS = st.builds(GEOMETRY.to_screen, st.integers(-100, 2500), st.integers(-100, 2500))
KEYS = st.one_of(
    st.sampled_from(["ctrl", "enter", "+", "a", "A", "'", '"', "\\", "\\n", ",", ")", "é"]),
    st.text(min_size=1).filter(
        lambda key: not any(c.isspace() or c == "+" for c in key) and key != "plus"
    ),
)
ACTIONS = st.one_of(
    st.builds(Click, point=POINTS, button=st.just("left"), count=st.sampled_from([1, 2])),
    st.builds(Click, point=POINTS, button=st.just("right")),
    st.builds(Hover, point=POINTS),
    st.builds(Drag, start=POINTS, end=POINTS),
    st.builds(
        Scroll,
        direction=st.sampled_from(["up", "down", "left", "right"]),
        point=st.none() | POINTS,
    ),
    st.builds(Hotkey, keys=st.lists(KEYS, min_size=1, max_size=4).map(tuple)),
    st.builds(Press, key=KEYS),
    st.builds(KeyDown, key=KEYS),
    st.builds(KeyUp, key=KEYS),
    st.builds(TypeText, text=NASTY),
    st.builds(Finished, text=NASTY),
    st.just(Wait()),
    st.just(CallUser()),
)


@given(NASTY, st.lists(ACTIONS, min_size=1, max_size=4))
@example("x\nAction: click(", [Wait()])
@example("\\Action: click(\n \\\\Action: click(", [Wait()])
@example("Action:", [TypeText(text="')\n\nAction: wait()")])
@settings(max_examples=200, deadline=None)
def test_parse_inverts_render(thought: str, actions: list[Action]) -> None:
    text = render(thought, actions, GEOMETRY)
    parsed = parse(text, GEOMETRY)
    assert parsed.error is None
    assert parsed.thought == thought.strip()
    assert parsed.actions == tuple(actions)
    assert render(parsed.thought, parsed.actions, GEOMETRY) == text


@given(st.floats(0, 1920), st.floats(0, 1080))
@settings(deadline=None)
def test_points_of_the_screen_are_rounded_to_pixels_of_the_model(x: float, y: float) -> None:
    text = render("", [Hover(point=Point(x, y))], GEOMETRY)
    (action,) = parse(text, GEOMETRY).actions
    assert isinstance(action, Hover)
    assert abs(action.point.x - x) <= 0.5
    assert abs(action.point.y - y) <= 0.5


def test_render_separates_calls_by_a_blank_line() -> None:
    text = render("Click, then wait.", [Click(point=P), Wait()], PLAIN)
    assert text == f"Thought: Click, then wait.\nAction: click(start_box={BOX})\n\nwait()"


@pytest.mark.parametrize(
    "actions",
    [
        [],
        [Click(point=P, button="right", count=2)],
        [Hover(point=Point(float("nan"), 1.0))],
        [Hover(point=Point(float("inf"), 1.0))],
        [Press(key="")],
        [Press(key="a b")],
        [Hotkey(keys=())],
        [Hotkey(keys=("ctrl+c",))],
    ],
)
def test_render_refuses_what_has_no_spelling(actions: list[Action]) -> None:
    with pytest.raises(ValueError, match=r"needs at least one|no spelling|cannot|NaN"):
        render("t", actions, PLAIN)
