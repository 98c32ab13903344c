"""Which tokens are thought, action, coordinates."""

from hypothesis import given
from hypothesis import strategies as st

from dart_gui.train.spans import Span, spans

T, A, C = Span.THOUGHT, Span.ACTION, Span.COORDINATE


def test_a_reply_of_ui_tars():
    pieces = [
        "Thought: at (3,4)",
        "\n",
        "Action:",
        " click(start_box='(",
        "12",
        "3",
        ",",
        "45",
        ")')",
    ]
    assert spans(pieces) == [T, T, A, A, C, C, A, C, A]


def test_both_points_of_a_drag_and_no_other_number():
    reply = "Action: drag(start_box='(1,2)', end_box='(3,4)') type(content='56')"
    found = spans(list(reply))
    marked = "".join(letter for letter, span in zip(reply, found, strict=True) if span is C)
    assert marked == "1234"


def test_a_token_that_joins_a_number_with_other_text_counts_as_coordinate():
    assert spans(["Action: click(", "'(10,", "20)'"]) == [A, C, C]


def test_without_an_action_all_is_thought():
    assert spans(["I ", "do (1,2)"]) == [T, T]
    assert spans([]) == []


@given(st.lists(st.text(max_size=8), max_size=20))
def test_one_span_a_token_whatever_the_text(pieces):
    assert len(spans(pieces)) == len(pieces)
