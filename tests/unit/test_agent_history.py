import itertools
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_gui.agent.history import HistoryWindow, Turn

Trim = Literal["slide", "block"]
TRIMS = st.sampled_from(["slide", "block"])


def turns(num: int, notes: tuple[int, ...] = ()) -> list[Turn]:
    """``num`` turns with images i0, i1, ... and replies r0, r1, ... to all but the newest."""
    return [
        Turn(
            f"i{index}",
            reply=f"r{index}" if index < num - 1 else None,
            note=f"n{index}" if index in notes else None,
        )
        for index in range(num)
    ]


def sketch(messages: list[dict[str, Any]]) -> str:
    """``system user[text i0] r0 user[i1]`` for a list of messages."""
    words = []
    for message in messages:
        if message["role"] == "system":
            words.append("system")
        elif message["role"] == "assistant":
            words.append(message["content"])
        else:
            parts = [
                part.get("text") or part["image_url"]["url"].removeprefix("sha256:")
                for part in message["content"]
            ]
            words.append(f"user[{' '.join(parts)}]")
    return " ".join(words)


def prompt(num: int, images: int, texts: int, trim: Trim, notes: tuple[int, ...] = ()) -> str:
    return sketch(HistoryWindow(images, texts, trim).messages("text", turns(num, notes)))


def test_messages_are_openai_chat_messages() -> None:
    assert HistoryWindow(5, 35).messages("text", turns(2)) == [
        {"role": "system", "content": "You are a helpful assistant."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "text"},
                {"type": "image_url", "image_url": {"url": "sha256:i0"}},
            ],
        },
        {"role": "assistant", "content": "r0"},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "sha256:i1"}}],
        },
    ]


@pytest.mark.parametrize(
    ("num", "expected"),
    [
        (1, "system user[text i0]"),
        (2, "system user[text i0] r0 user[i1]"),
        (3, "system user[text] r0 user[i1] r1 user[i2]"),
        (4, "system user[text] r0 r1 user[i2] r2 user[i3]"),
    ],
)
def test_slide_drops_the_oldest_image_and_keeps_its_reply(num: int, expected: str) -> None:
    assert prompt(num, 2, 35, "slide") == expected


@pytest.mark.parametrize(
    ("num", "first"),
    [(1, 0), (5, 0), (6, 4), (7, 4), (8, 4), (9, 4), (10, 8), (13, 8), (14, 12)],
)
def test_block_grows_to_five_images_and_drops_to_two(num: int, first: int) -> None:
    words = prompt(num, 5, 35, "block").replace("[", " ").replace("]", " ").split()
    assert [word for word in words if word[0] == "i"] == [f"i{k}" for k in range(first, num)]
    assert [word for word in words if word[0] == "r"] == [f"r{k}" for k in range(num - 1)]


def test_a_dropped_reply_takes_its_screenshot_along() -> None:
    assert prompt(4, 9, 1, "slide") == "system user[text i2] r2 user[i3]"
    assert prompt(4, 1, 1, "slide") == "system user[text] r2 user[i3]"


def test_texts_are_dropped_in_blocks_too() -> None:
    assert prompt(4, 9, 4, "block") == "system user[text i0] r0 user[i1] r1 user[i2] r2 user[i3]"
    assert prompt(6, 9, 4, "block") == "system user[text i3] r3 user[i4] r4 user[i5]"


def test_a_note_outlives_its_screenshot_but_not_the_reply_that_it_is_about() -> None:
    assert (
        prompt(3, 5, 35, "slide", notes=(1,)) == "system user[text i0] r0 user[n1 i1] r1 user[i2]"
    )
    assert prompt(3, 1, 35, "slide", notes=(1,)) == "system user[text] r0 user[n1] r1 user[i2]"
    assert prompt(3, 5, 1, "slide", notes=(1,)) == "system user[text i1] r1 user[i2]"


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 12), TRIMS)
@settings(deadline=None)
def test_every_prompt_keeps_to_its_limits(num: int, images: int, texts: int, trim: Trim) -> None:
    messages = HistoryWindow(images, texts, trim).messages("text", turns(num))
    words = sketch(messages).replace("[", " ").replace("]", " ").split()
    shown = [int(word[1:]) for word in words if word[0] == "i"]
    replies = [int(word[1:]) for word in words if word[0] == "r"]
    assert messages[-1]["role"] == "user"
    assert messages[-1]["content"][-1]["image_url"]["url"] == f"sha256:i{num - 1}"
    # the newest ones, without holes
    assert shown == list(range(num - len(shown), num))
    assert replies == list(range(num - 1 - len(replies), num - 1))
    assert 1 <= len(shown) <= min(images, len(replies) + 1)
    least_texts = texts if trim == "slide" else max(1, texts // 2)
    assert min(num - 1, least_texts) <= len(replies) <= texts
    least_images = images if trim == "slide" else max(1, images // 2)
    assert len(shown) >= min(num, least_images, len(replies) + 1)
    roles = [message["role"] for message in messages]
    assert roles[:2] == ["system", "user"]
    assert ("user", "user") not in itertools.pairwise(roles)


@given(st.integers(1, 9), st.integers(1, 12))
@settings(deadline=None)
def test_block_prompts_begin_with_the_one_before_unless_a_block_is_dropped(
    images: int, texts: int
) -> None:
    num_steps = 60
    window = HistoryWindow(images, texts, "block")
    breaks = 0
    before = window.messages("text", turns(1))
    for num in range(2, num_steps + 1):
        now = window.messages("text", turns(num))
        if now[: len(before)] == before:
            assert sketch(now[len(before) :]) == f"r{num - 2} user[i{num - 1}]"
        else:
            breaks += 1
        before = now
    image_block = images + 1 - max(1, images // 2)
    text_block = texts + 1 - max(1, texts // 2)
    assert breaks <= num_steps // image_block + num_steps // text_block + 2


@pytest.mark.parametrize(
    "bad",
    [[], [Turn("i0", "r0")], [Turn("i0"), Turn("i1")]],
    ids=["none", "answered", "skipped"],
)
def test_a_prompt_needs_exactly_the_newest_turn_unanswered(bad: list[Turn]) -> None:
    with pytest.raises(ValueError, match="all have a reply but the newest"):
        HistoryWindow(5, 35).messages("text", bad)


@pytest.mark.parametrize("limits", [(0, 1), (1, 0)])
def test_a_window_shows_something(limits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        HistoryWindow(*limits)
