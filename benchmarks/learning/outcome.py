"""What is kept of a finished run: a small JSON file that the report is written from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.learning.cpu import read_cpu
from benchmarks.learning.seeds import check_seeds
from benchmarks.stats import binned_rates
from dart_gui import metrics
from dart_gui.config import Config
from dart_gui.data.schema import task_group
from dart_gui.files import write_whole
from dart_gui.launch.plots import RunCurves
from dart_gui.launch.process import ProcessState
from dart_gui.launch.progress import Event, number
from dart_gui.launch.run_folder import RunFolder
from dart_gui.runner.main import task_names

NUM_BINS = 40
NUM_TASK_BINS = 10  # a task has a fraction of the episodes
CPU_FILE = "cpu.json"

Curve = list[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    name: str
    seed: int
    lr: float
    fingerprint: str  # of configuration and model
    num_train_steps: int
    num_episodes: int
    train_min: float
    staleness_max: float
    max_staleness: int
    num_starts: int  # of the trainer: more than 1 where the run was interrupted
    num_restarts: int  # of processes that died
    evals: dict[str, Event]  # "floor", "before sampled", "before greedy", "after ..."
    curve: Curve  # [NUM_BINS] success of training episodes, in equal parts of curve_min
    curve_min: float  # minutes of training that the configuration allows
    curve_by_task: dict[str, Curve]  # [NUM_TASK_BINS] each
    seeds: dict[str, int]
    cpu_s: dict[str, float]
    cpu_wall_s: float

    @property
    def is_control(self) -> bool:
        return self.lr == 0

    def gain(self, decoding: str) -> float:
        """Points of success on held-out seeds, after minus before; ``sampled`` or ``greedy``."""
        before, after = self.evals[f"before {decoding}"], self.evals[f"after {decoding}"]
        return 100.0 * (after["success_rate"] - before["success_rate"])

    def save(self, folder: Path) -> None:
        write_whole(folder / f"{self.name}.json", json.dumps(asdict(self), indent=1) + "\n")


def load(path: Path) -> Outcome | None:
    if not path.exists():
        return None
    return Outcome(**json.loads(path.read_text(encoding="utf-8")))


def read_outcome(folder: RunFolder, config: Config, *, name: str, fingerprint: str) -> Outcome:
    """Raises ``SystemExit`` where an evaluation is missing: the run has not ended."""
    events = list(metrics.read(folder.metrics))
    curves = RunCurves(events)
    evals = evaluations(events)
    missing = sorted({"floor", *_NEEDED} - set(evals))
    if missing or not curves.train:
        raise SystemExit(f"{folder.path} has not ended: it lacks {missing or 'train steps'}")
    minutes = curves.minutes_of(curves.episodes)
    cpu = read_cpu(folder.path / CPU_FILE)
    seeds = check_seeds(planned_seeds(folder, config), config, num_tasks=len(task_names(config)))
    return Outcome(
        name=name,
        seed=config.run.seed,
        lr=config.train.lr,
        fingerprint=fingerprint,
        num_train_steps=len(curves.train),
        num_episodes=len(curves.episodes),
        train_min=(number(curves.train[-1], "elapsed_s") or 0.0) / 60.0,
        staleness_max=max(number(event, "staleness_max") or 0.0 for event in curves.train),
        max_staleness=config.data.max_staleness,
        num_starts=sum(event.get("event") == "trainer_start" for event in events),
        num_restarts=sum(_is_restart(event) for event in events),
        evals=evals,
        curve=_curve(curves.episodes, list(minutes), config, NUM_BINS),
        curve_min=config.run.max_time_s / 60.0,
        curve_by_task=_curves_by_task(curves.episodes, list(minutes), config),
        seeds=asdict(seeds),
        cpu_s=cpu.cpu_s,
        cpu_wall_s=cpu.wall_s,
    )


_NEEDED = ("before sampled", "before greedy", "after sampled", "after greedy")


def evaluations(events: Sequence[Event]) -> dict[str, Event]:
    """The newest evaluation of each kind, without what is of its process and its hour."""
    found: dict[str, Event] = {}
    for event in events:
        if event.get("event") == "eval" and event.get("phase") in ("floor", "before", "after"):
            decoding = "sampled" if number(event, "temperature") else "greedy"
            phase = str(event["phase"])
            name = phase if phase == "floor" else f"{phase} {decoding}"
            found[name] = {key: event[key] for key in event if key not in ("at", "process")}
    return found


def planned_seeds(folder: RunFolder, config: Config) -> list[tuple[str, int]]:
    """(task_id, seed) of every group that was planned."""
    url = config.data.ledger or f"sqlite:///{folder.path / 'ledger.sqlite'}"
    query = sa.select(task_group.c.task_id, task_group.c.seed)
    query = query.where(task_group.c.run_id == folder.run_id)
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            return [(str(task), int(seed)) for task, seed in connection.execute(query)]
    finally:
        engine.dispose()


def _curve(
    episodes: Sequence[Event], minutes: Sequence[float], config: Config, num_bins: int
) -> Curve:
    successes = [event.get("success") is True for event in episodes]
    return binned_rates(minutes, successes, end=config.run.max_time_s / 60.0, num_bins=num_bins)


def _curves_by_task(
    episodes: Sequence[Event], minutes: Sequence[float], config: Config
) -> dict[str, Curve]:
    by_task: dict[str, list[tuple[Event, float]]] = {}
    for event, minute in zip(episodes, minutes, strict=True):
        by_task.setdefault(str(event.get("task_id")), []).append((event, minute))
    return {
        task: _curve(
            [event for event, _ in own], [minute for _, minute in own], config, NUM_TASK_BINS
        )
        for task, own in sorted(by_task.items())
    }


def _is_restart(event: Mapping[str, Any]) -> bool:
    return event.get("event") == "process" and event.get("state") == ProcessState.BACKOFF
