from __future__ import annotations

import ast
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from dart_gui.env.desktop import rest
from dart_gui.env.desktop.published import program
from dart_gui.fakes import FakeClock


def process(proc: Path, pid: int, *states: str, name: str = "app") -> None:
    """A process of ``/proc`` with a thread in each of the states."""
    for i, state in enumerate(states):
        thread = proc / str(pid) / "task" / str(pid + i)
        thread.mkdir(parents=True)
        (thread / "stat").write_text(f"{pid + i} ({name}) {state} 1 1 1 0 -1 4194560 R D")


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (("S", "S"), False),
        (("S", "R"), True),  # any thread, not the first alone
        (("D",), True),  # waits for a disk
        (("T", "Z", "I"), False),  # stopped by somebody, dead, of the kernel
    ],
)
def test_at_work_is_who_runs_or_waits_for_processor_or_disk(
    tmp_path: Path, states: Sequence[str], expected: bool
) -> None:
    process(tmp_path, os.getpid(), "R")  # who looks
    process(tmp_path, 4_200_000, "S", name="a) R (b")
    process(tmp_path, 4_200_100, *states)
    (tmp_path / "4200200" / "task" / "4200200").mkdir(parents=True)  # ended while it was looked at
    (tmp_path / "sys").mkdir()
    assert rest.at_work(tmp_path) is expected


def test_a_program_of_this_machine_is_seen_at_work() -> None:
    assert rest.at_work() in (True, False)  # the real /proc can be read


class Days:
    """At work at the looks that are named."""

    def __init__(self, *at_work: int) -> None:
        self._at_work = at_work
        self.num_looks = 0

    def __call__(self) -> bool:
        self.num_looks += 1
        return self.num_looks in self._at_work


def wait(days: Days, *, rest_s: float = 0.1, limit_s: float = 1.0) -> tuple[bool, float]:
    clock = FakeClock()

    def sleep(seconds: float) -> None:
        clock.advance(seconds)

    met = rest.await_rest(rest_s, limit_s, is_at_work=days, clock=clock, sleep=sleep)
    return met, clock()


def test_rest_is_no_work_for_so_long() -> None:
    met, waited_s = wait(Days())
    assert met
    assert abs(waited_s - 0.1) < rest.POLL_S + 1e-9
    # Last at work at the fifth look, after four pauses.
    met, waited_s = wait(Days(1, 5))
    assert met
    assert abs(waited_s - (4 * rest.POLL_S + 0.1)) < rest.POLL_S + 1e-9


def test_who_never_rests_is_given_up_in_time() -> None:
    met, waited_s = wait(Days(*range(1000)))
    assert not met
    assert 1.0 <= waited_s < 1.0 + 2 * rest.POLL_S


def test_it_is_sent_to_published_guests_and_needs_nothing_of_this_project() -> None:
    text = program("rest.py")
    assert text == Path(rest.__file__).read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text, feature_version=(3, 8))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert str(name).partition(".")[0] in sys.stdlib_module_names
