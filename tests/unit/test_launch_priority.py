from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dart_gui.launch.priority import descendants, lower_sessions

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="there is no /proc on this system"
)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, like a rollout worker."""
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        yield process
        process.kill()


def test_children_of_children_are_found(child: subprocess.Popen[bytes]) -> None:
    assert child.pid in descendants(os.getpid())
    assert os.getpid() in descendants(os.getppid())
    assert list(descendants(child.pid)) == []


@pytest.mark.skipif(
    not Path("/proc/self/autogroup").exists(), reason="the kernel has no autogroup scheduling"
)
def test_only_other_sessions_are_lowered(child: subprocess.Popen[bytes]) -> None:
    own = Path("/proc/self/autogroup")
    before = own.read_text()
    theirs = Path(f"/proc/{child.pid}/autogroup")
    # Without privileges the kernel takes one change in a tenth of a second from all processes.
    for _ in range(1000):
        lower_sessions(7)
        if theirs.read_text().endswith("nice 7\n"):
            break
    assert theirs.read_text().endswith("nice 7\n")
    assert own.read_text() == before
