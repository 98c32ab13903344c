"""How busy this machine is, as the published server's ``/status`` says it."""

from __future__ import annotations

from pathlib import Path


class HostUse:
    """Percentages, or None where the machine does not tell (``/proc``)."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._before = (0, 0)  # since the boot; then since it was asked before

    def cpu_percent(self) -> float | None:
        """Of all processors, since it was asked before."""
        try:
            ticks = [int(word) for word in self._first_line("stat").split()[1:9]]
            idle, total = ticks[3] + ticks[4], sum(ticks)
        except (OSError, ValueError, IndexError):
            return None
        before_idle, before_total = self._before
        self._before = idle, total
        if total <= before_total:
            return None
        return 100 * (1 - (idle - before_idle) / (total - before_total))

    def memory_percent(self) -> float | None:
        """Of the memory that programs could have."""
        try:
            lines = (self._proc / "meminfo").read_text().splitlines()
            sizes = {
                name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)
            }
            return 100 * (1 - sizes["MemAvailable"] / sizes["MemTotal"])
        except (OSError, ValueError, KeyError, IndexError):
            return None

    def _first_line(self, name: str) -> str:
        return (self._proc / name).read_text().partition("\n")[0]
