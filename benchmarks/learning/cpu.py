"""CPU seconds of each module of a run while it trains, sampled from outside."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.processes import Process, tree
from dart_gui.files import write_whole

LOOK_EVERY_S = 1.0
TRAINER = "trainer"
_MODULE = re.compile(r"-m dart_gui (\w+)")


def module_of(process: Process) -> str:
    """In the words of docs/architecture.md; the browser apart, whoever started it."""
    if "-m dart_gui.rollout.worker" in process.command:
        return "rollout worker"
    if found := _MODULE.search(process.command):
        module = found.group(1)
        return {"train": "supervisor", "rollout": "rollout service"}.get(module, module)
    return "browser" if "chrom" in process.command else "Playwright driver"


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuTime:
    cpu_s: dict[str, float] = field(default_factory=dict)  # by module
    wall_s: float = 0.0

    def plus(self, cpu_s: Mapping[str, float], wall_s: float) -> CpuTime:
        modules = sorted({*self.cpu_s, *cpu_s})
        total = {name: self.cpu_s.get(name, 0.0) + cpu_s.get(name, 0.0) for name in modules}
        return CpuTime(cpu_s=total, wall_s=self.wall_s + wall_s)


class CpuMeter:
    """Adds up what the processes used between two looks, for as long as there is a trainer.

    What a process used between the last look and its end is lost: a second at most.
    """

    def __init__(self) -> None:
        self.cpu_s: defaultdict[str, float] = defaultdict(float)
        self.wall_s = 0.0
        self._last: dict[tuple[int, int], float] = {}
        self._last_at: float | None = None

    def look(self, processes: Iterable[Process], now: float) -> None:
        seen = {(each.pid, each.started): each for each in processes}
        if any(module_of(each) == TRAINER for each in seen.values()):
            for key, each in seen.items():
                self.cpu_s[module_of(each)] += each.cpu_s - self._last.get(key, 0.0)
            self.wall_s += now - (now if self._last_at is None else self._last_at)
        self._last = {key: each.cpu_s for key, each in seen.items()}
        self._last_at = now


class MeterThread:
    """Meters the tree of ``root`` into ``path`` while the context lasts, on top of what is there."""

    def __init__(
        self, root: int, path: Path, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._root = root
        self._path = path
        self._monotonic = monotonic
        self._meter = CpuMeter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cpu-meter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        before = read_cpu(self._path)
        total = before.plus(self._meter.cpu_s, self._meter.wall_s)
        write_whole(self._path, json.dumps(asdict(total)))

    def _run(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            self._meter.look(tree(self._root), self._monotonic())


def read_cpu(path: Path) -> CpuTime:
    """Nothing where nothing was metered."""
    if not path.exists():
        return CpuTime()
    return CpuTime(**json.loads(path.read_text(encoding="utf-8")))
