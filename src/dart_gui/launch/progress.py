"""What a run has done so far, folded from its ``metrics.jsonl`` one event at a time.

The live view, the reports and TensorBoard read the same file; nothing is kept beside it. An event
is JSON that another process wrote, perhaps one of another version: a value that is missing or of
another type counts as not reported.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]

WINDOW_EPISODES = 200
WINDOW_TASK_EPISODES = 50
WINDOW_TRAIN_STEPS = 10
RATE_WINDOW_S = 120.0


class MetricsTail:
    """Reads a growing file of JSON lines; each call gives the whole lines that are new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [event for line in whole.splitlines() if (event := _parse(line)) is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:  # a line that a crash cut off
        return None
    return event if isinstance(event, dict) else None


def number(event: Event, key: str) -> float | None:
    """The value where it is a number, else None."""
    value = event.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


@dataclass(slots=True)
class Progress:
    """The fold. Rates are per second of the events' own time stamps unless the name says else."""

    num_episodes: int = 0
    trained_at: float | None = None  # time stamp of the last sign of the trainer, in this launch
    last_train_step: Event = field(default_factory=dict)
    last_runner: Event = field(default_factory=dict)
    evals: list[Event] = field(default_factory=list)
    evaluated_version: int = 0  # the newest policy version that an evaluation while training took
    alarms: dict[str, Event] = field(default_factory=dict)  # those that are up
    stop: Event = field(default_factory=dict)  # why training ended, where it has
    episodes: deque[Event] = field(default_factory=lambda: deque(maxlen=WINDOW_EPISODES))
    by_task: dict[str, deque[bool]] = field(default_factory=dict)
    train_steps: deque[Event] = field(default_factory=lambda: deque(maxlen=WINDOW_TRAIN_STEPS))

    def fold(self, event: Event) -> None:
        match event.get("event"):
            case "episode":
                self._fold_episode(event)
            case "train_step":
                self.last_train_step = event
                self.trained_at = number(event, "at")
                self.train_steps.append(event)
            case "trainer_start":
                self.trained_at = number(event, "at")
                self.stop = {}
            case "runner":
                self.last_runner = event
            case "eval":
                self.evals.append(event)
                if event.get("phase") == "during":
                    self._fold_evaluated(event)
            case "eval_given_up":
                self._fold_evaluated(event)
            case "alarm":
                self._fold_alarm(event)
            case "stop":
                self.stop = event

    def _fold_evaluated(self, event: Event) -> None:
        version = int(number(event, "policy_version") or 0)
        self.evaluated_version = max(self.evaluated_version, version)

    def _fold_alarm(self, event: Event) -> None:
        key = " ".join(filter(None, [str(event.get("alarm")), str(event.get("subject") or "")]))
        if event.get("state") == "raised":
            self.alarms[key] = event
        else:
            self.alarms.pop(key, None)

    def _fold_episode(self, event: Event) -> None:
        self.num_episodes += 1
        self.episodes.append(event)
        window = self.by_task.setdefault(
            str(event.get("task_id")), deque(maxlen=WINDOW_TASK_EPISODES)
        )
        window.append(event.get("success") is True)

    @property
    def success_rate(self) -> float | None:
        """Over the last 200 training episodes."""
        return mean([event.get("success") is True for event in self.episodes])

    def success_by_task(self) -> dict[str, tuple[float, int]]:
        """(success rate, number of episodes) over the last 50 episodes of each task."""
        return {
            task: (sum(window) / len(window), len(window))
            for task, window in sorted(self.by_task.items())
        }

    def episodes_per_min(self, now: float) -> float | None:
        stamps = [at for event in self.episodes if (at := number(event, "at")) is not None]
        recent = [at for at in stamps if at > now - RATE_WINDOW_S]
        if not recent:
            return None
        # The window of 200 episodes may be shorter than the two minutes.
        span = RATE_WINDOW_S if len(recent) < len(stamps) else max(now - recent[0], 1.0)
        return 60.0 * len(recent) / span

    def train_step_s(self) -> float | None:
        """Seconds from one train step to the next, waiting included; mean of the last ten."""
        return mean([_duration(event) for event in self.train_steps])

    def train_samples_per_s(self) -> float | None:
        total = sum(_duration(event) for event in self.train_steps)
        samples = sum(number(event, "num_samples") or 0.0 for event in self.train_steps)
        return samples / total if total > 0 else None

    def trainer_utilisation(self) -> float | None:
        """Share of its time in which the trainer did not wait for data."""
        total = sum(_duration(event) for event in self.train_steps)
        busy = sum(number(event, "step_s") or 0.0 for event in self.train_steps)
        return busy / total if total > 0 else None

    def elapsed_s(self) -> float:
        """Seconds of training up to the last train step."""
        return number(self.last_train_step, "elapsed_s") or 0.0

    @property
    def train_step(self) -> int:
        return int(number(self.last_train_step, "train_step") or 0)

    def eval_of(
        self, phase: str, temperature: float, *, train_step: int | None = None
    ) -> Event | None:
        """The newest evaluation of that kind, of that train step where one is named."""
        for event in reversed(self.evals):
            if event.get("phase") != phase or number(event, "temperature") != temperature:
                continue
            if train_step is None or number(event, "train_step") == train_step:
                return event
        return None


def _duration(event: Event) -> float:
    return (number(event, "step_s") or 0.0) + (number(event, "wait_s") or 0.0)


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def eta_s(
    *, elapsed_s: float, max_time_s: float, train_step: int, max_train_steps: int, step_s: float
) -> float:
    """Seconds to the end of training: whichever limit comes first.

    >>> eta_s(elapsed_s=200, max_time_s=1200, train_step=10, max_train_steps=20, step_s=5)
    50.0
    """
    by_time = max(0.0, max_time_s - elapsed_s)
    if max_train_steps and step_s > 0:
        return min(by_time, max(0, max_train_steps - train_step) * step_s)
    return by_time
