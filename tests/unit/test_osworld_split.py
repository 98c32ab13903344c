"""Splits of OSWorld's tasks: nothing of one side is on the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_gui.env.osworld.split import families, split_by_domain, split_by_task, write_split
from dart_gui.env.osworld.tasks import OsworldFolder
from dart_gui.errors import ConfigError


def text(
    instruction: str, *, urls: tuple[str, ...] = (), source: str | list[str] = ""
) -> dict[str, Any]:
    files = [{"url": url, "path": "/x"} for url in urls]
    return {
        "instruction": instruction,
        "source": source,
        "config": [{"type": "download", "parameters": {"files": files}}],
        "evaluator": {"func": "infeasible"},
    }


def test_what_shares_a_file_a_page_or_a_wording_is_one_family() -> None:
    texts = {
        "osworld/a/1": text("one", urls=("http://h/f?download=true",)),
        "osworld/a/2": text("two", urls=("http://h/f",), source=["http://p/q", "http://p/r"]),
        "osworld/b/3": text("three", source="http://p/r"),
        "osworld/b/4": text("Say  it"),
        "osworld/b/5": text("say it", source="authors"),
        "osworld/b/6": text("six", source="authors"),
    }
    assert families(texts) == [
        ["osworld/a/1", "osworld/a/2", "osworld/b/3"],
        ["osworld/b/4", "osworld/b/5"],
        ["osworld/b/6"],
    ]


def test_a_page_that_many_tasks_name_is_a_collection() -> None:
    texts = {f"osworld/a/{i}": text(f"do {i}", source="http://p/q") for i in range(9)}
    assert len(families(texts)) == 9
    texts.pop("osworld/a/0")
    assert len(families(texts)) == 1


def test_one_content_under_two_urls_is_one_file() -> None:
    texts = {
        "osworld/a/1": text("one", urls=("http://h/f",)),
        "osworld/a/2": text("two", urls=("http://g/f",)),
    }
    assert len(families(texts)) == 2
    assert len(families(texts, content_of=lambda _: "0" * 64)) == 1


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), min_size=10, max_size=60),
    st.sampled_from([0.2, 0.5]),
)
def test_a_split_never_leaks_and_keeps_every_task(
    drawn: list[tuple[str, int]], share: float
) -> None:
    texts = {
        f"osworld/{domain}/{i}": text(f"do {i}", urls=(f"http://h/{file}",))
        for i, (domain, file) in enumerate(drawn)
    }
    try:
        sides = split_by_task(texts, share=share)
    except ConfigError:
        return  # one family is all, or too large for its share
    assert sorted(sides["train"] + sides["heldout"]) == sorted(texts)
    files = [
        {texts[t]["config"][0]["parameters"]["files"][0]["url"] for t in s} for s in sides.values()
    ]
    assert not files[0] & files[1]
    assert sides == split_by_task(dict(reversed(texts.items())), share=share)


def test_each_domain_gives_its_share() -> None:
    texts = {f"osworld/{d}/{i}": text(f"do {d}{i}") for d in "ab" for i in range(20)}
    sides = split_by_task(texts, share=0.25)
    for domain in "ab":
        assert sum(t.startswith(f"osworld/{domain}/") for t in sides["heldout"]) == 5
    assert sides != split_by_task(texts, share=0.25, salt="other")


def test_whole_domains_leave_their_relatives_out() -> None:
    texts = {
        "osworld/gimp/1": text("one", urls=("http://h/f",)),
        "osworld/os/2": text("two", urls=("http://h/f",)),
        "osworld/os/3": text("three"),
    }
    sides = split_by_domain(texts, ["gimp"])
    assert sides == {"heldout": ["osworld/gimp/1"], "train": ["osworld/os/3"]}
    with pytest.raises(ConfigError, match="no domain vlc"):
        split_by_domain(texts, ["vlc"])
    with pytest.raises(ConfigError, match="no task is left to train"):
        split_by_domain(texts, ["gimp", "os"])


def test_the_lists_that_are_written_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation_examples"
    for i in range(10):
        path = folder / "examples" / "os" / f"{i}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"instruction": "do {i}", "evaluator": {{"func": "infeasible"}}}}')
    tasks = OsworldFolder(folder)
    sides = split_by_task({t: tasks.text(t) for t in tasks.task_ids}, share=0.3)
    for path in write_split(tasks, sides, tmp_path / "lists"):
        assert list(OsworldFolder(path).task_ids) == sides[path.stem]
    assert len(sides["heldout"]) == 3
