"""One segment: a short training run of all modules, watched from outside."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.decoupled.figures import Segment, measure_segment
from benchmarks.results import ROOT
from dart_gui import metrics
from dart_gui.launch.run_folder import RunFolder
from dart_gui.launch.service import ServiceProbe

LOOK_S = 0.5
DECOUPLED, COUPLED = "decoupled", "coupled"

COUPLING = {DECOUPLED: (), COUPLED: ("data.max_staleness=0",)}
"""With ``data.max_staleness = 0`` the loop is the coupled one: at version v no more groups than one
batch are in the system, all of them planned at v; all their episodes end before the batch is claimed;
and the next batch is not planned before every worker serves v + 1 (``data/staleness.py``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentSpec:
    name: str  # DECOUPLED or COUPLED
    config_path: Path
    overrides: tuple[str, ...]
    place: Path  # of the run folder

    def command(self) -> list[str]:
        flags = [f"--{each}" for each in (*self.overrides, *COUPLING[self.name])]
        train = ["train", str(self.config_path), "--run-dir", str(self.place), *flags]
        return [sys.executable, "-m", "dart_gui", *train]


def run_segment(
    spec: SegmentSpec, *, warm_up_s: float, on_look: Callable[[], None] = lambda: None
) -> Segment:
    """Raises ``RuntimeError`` where the run fails or the segment is too short to be measured."""
    log = spec.place.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        child = subprocess.Popen(spec.command(), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            busy = _watch(child, RunFolder(spec.place.absolute()), on_look)
        finally:
            if child.poll() is None:
                child.terminate()
            child.wait()
    if child.returncode != 0:
        raise RuntimeError(f"a segment failed: {log.read_text('utf-8', 'replace')[-3000:]}")
    events = list(metrics.read(RunFolder(spec.place).metrics))
    try:
        return measure_segment(events, busy, warm_up_s=warm_up_s)
    except ValueError as error:
        raise RuntimeError(f"{spec.place}: {error}; give more --seconds") from None


def _watch(
    child: subprocess.Popen[bytes], folder: RunFolder, on_look: Callable[[], None]
) -> dict[str, list[tuple[float, float]]]:
    """How busy each worker says it is, until the run ends."""
    busy: dict[str, list[tuple[float, float]]] = {}
    probe: ServiceProbe | None = None
    while child.poll() is None:
        if probe is None and folder.token.exists():
            probe = ServiceProbe(folder, folder.load_config())
        view = probe.status() if probe else None
        for worker in view.workers if view else ():
            busy.setdefault(worker.worker_id, []).append((time.time(), worker.busy_s))
        on_look()
        time.sleep(LOOK_S)
    return busy
