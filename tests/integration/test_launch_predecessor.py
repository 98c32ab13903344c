"""A module that starts while its predecessor still ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dart_gui.errors import SetupError
from dart_gui.fakes import FakeClock
from dart_gui.launch.predecessor import wait_for_predecessor

SRC = Path(__file__).resolve().parents[2] / "src"
HOLDER = """
import pathlib, sys
from dart_gui.launch.predecessor import wait_for_predecessor
wait_for_predecessor(pathlib.Path(sys.argv[1]), "runner")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(SRC)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_it_waits_until_the_predecessor_is_dead(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    looks = []

    def sleep(_: float) -> None:
        looks.append(holder.poll())
        holder.kill()
        holder.wait(30)

    wait_for_predecessor(tmp_path, "runner", sleep=sleep)
    assert looks == [None]
    wait_for_predecessor(tmp_path, "trainer", sleep=sleep)  # another module's lock is its own
    assert len(looks) == 1


def test_a_second_one_is_refused_in_the_end(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    clock = FakeClock()
    with pytest.raises(
        SetupError, match=rf"another runner \(process {holder.pid}\) .* within 30 s"
    ):
        wait_for_predecessor(tmp_path, "runner", monotonic=clock, sleep=clock.advance)
    assert clock() == pytest.approx(30.0, abs=0.2)
