"""How busy the machine is, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dart_gui.compat.host_use import HostUse


def test_percentages(tmp_path: Path) -> None:
    host = HostUse(tmp_path)
    (tmp_path / "stat").write_text("cpu  10 0 10 60 20 0 0 0 0 0\ncpu0 1 1 1 1\n")
    (tmp_path / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 250 kB\n")
    assert host.cpu_percent() == pytest.approx(20)  # since the boot
    (tmp_path / "stat").write_text("cpu  70 0 10 80 40 0 0 0 0 0\n")
    assert host.cpu_percent() == pytest.approx(60)  # 60 of 100 ticks
    assert host.cpu_percent() is None  # no time has passed
    assert host.memory_percent() == pytest.approx(75)


def test_a_machine_that_does_not_tell(tmp_path: Path) -> None:
    host = HostUse(tmp_path)
    assert (host.cpu_percent(), host.memory_percent()) == (None, None)
    (tmp_path / "stat").write_text("nonsense\n")
    (tmp_path / "meminfo").write_text("nonsense\n")
    assert (host.cpu_percent(), host.memory_percent()) == (None, None)
