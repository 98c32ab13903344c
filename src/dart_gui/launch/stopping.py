"""When training is enough: pure rules over the events of a run, so they survive a resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dart_gui.config import Config
from dart_gui.launch.progress import WINDOW_EPISODES, Event, Progress, number


class StopCause(StrEnum):
    """Why training ended; named after the key that says so."""

    STEPS = "run.max_train_steps"
    TIME = "run.max_time_s"
    TARGET = "run.target_success"
    PATIENCE = "run.patience"
    ALARM = "alarms.stop_on"


@dataclass(frozen=True, slots=True)
class Stop:
    cause: StopCause
    text: str

    def to_json(self) -> dict[str, str]:
        return {"cause": self.cause.value, "text": self.text}


class StopRules:
    """Target and patience, over the success rates of the evaluations while training, or, where there
    are none, of the window of training episodes at each train step."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._best: float | None = None
        self._best_at = ""
        self._num_without_progress = 0
        self._last: float | None = None
        self._last_at = ""

    def fold(self, event: Event, progress: Progress) -> None:
        if self._config.eval.every:
            if is_comparable(event, self._config, phases=("during",)):
                version, episodes = event.get("policy_version"), event.get("num_episodes")
                where = f"the evaluation of policy version {version} ({episodes} episodes)"
                self._measured(number(event, "success_rate") or 0.0, where)
        elif event.get("event") == "train_step" and len(progress.episodes) == WINDOW_EPISODES:
            where = f"the {WINDOW_EPISODES} training episodes before train step "
            self._measured(progress.success_rate or 0.0, where + str(progress.train_step))

    def _measured(self, rate: float, where: str) -> None:
        self._last, self._last_at = rate, where
        if self._best is None or rate > self._best + self._config.run.min_delta:
            self._best, self._best_at = rate, where
            self._num_without_progress = 0
        else:
            self._num_without_progress += 1

    def decision(self) -> Stop | None:
        run = self._config.run
        if self._last is None or self._best is None:
            return None
        if 0 < run.target_success <= self._last:
            return Stop(
                StopCause.TARGET,
                f"the target of {100 * run.target_success:g} % is reached: "
                f"{100 * self._last:.1f} % in {self._last_at}",
            )
        if 0 < run.patience <= self._num_without_progress:
            what = "evaluations" if self._config.eval.every else "train steps"
            return Stop(
                StopCause.PATIENCE,
                f"no progress in {self._num_without_progress} {what}: the best was "
                f"{100 * self._best:.1f} % in {self._best_at} (run.min_delta is "
                f"{100 * run.min_delta:g} points)",
            )
        return None


def is_comparable(event: Event, config: Config, *, phases: tuple[str, ...]) -> bool:
    """An evaluation of one of these phases, decoded as the configuration now says."""
    return (
        event.get("event") == "eval"
        and event.get("phase") in phases
        and number(event, "temperature") == config.eval.temperature
        and number(event, "success_rate") is not None
    )


def by_limit(config: Config, train_step: int) -> Stop:
    """The trainer ended by itself: which of its two limits it was."""
    run = config.run
    if 0 < run.max_train_steps <= train_step:
        return Stop(StopCause.STEPS, f"all {run.max_train_steps} train steps are done")
    return Stop(StopCause.TIME, f"{run.max_time_s:g} s of training are over")


def by_alarm(name: str, text: str) -> Stop:
    return Stop(StopCause.ALARM, f"alarm {name}: {text}")


def from_json(value: object) -> Stop | None:
    """None where it is not what :meth:`Stop.to_json` gives."""
    tree: Mapping[str, Any] = value if isinstance(value, dict) else {}
    try:
        return Stop(StopCause(tree["cause"]), str(tree["text"]))
    except (KeyError, ValueError):
        return None
