"""What is left to do in a run, from what its folder says. Nothing else remembers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dart_gui.config import Config
from dart_gui.launch.pinned import pins
from dart_gui.launch.progress import Progress
from dart_gui.launch.run_folder import RunFolder
from dart_gui.launch.stopping import Stop, from_json
from dart_gui.types import WeightsRef

STATUS = "run"
"""``status/run.json``: written by the supervisor when training has ended, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalJob:
    phase: str  # "floor", "before", "during", "after"; "eval" outside of a training run
    temperature: float
    train_step: int
    weights: WeightsRef | None = None
    """Evaluate these, by a worker of its own, instead of what the run's service serves."""

    @property
    def title(self) -> str:
        if self.phase == "floor":
            return "measuring the random floor"
        if self.weights is not None:
            return f"evaluating policy version {self.weights.policy_version}"
        when = "" if self.phase == "eval" else f" {self.phase} training"
        return f"evaluating{when}, {'sampled' if self.temperature else 'greedy'}"

    @property
    def arguments(self) -> list[str]:
        arguments = [
            "--phase",
            self.phase,
            "--temperature",
            f"{self.temperature:g}",
            "--train-step",
            str(self.train_step),
        ]
        if self.weights is not None:
            arguments += ["--weights", self.weights.path]
            arguments += ["--policy-version", str(self.weights.policy_version)]
        return arguments


def limits(config: Config) -> dict[str, Any]:
    """What ends training; other limits open a finished run again."""
    run = config.run
    criteria = {
        "target_success": run.target_success,
        "patience": run.patience,
        "min_delta": run.min_delta,
        "stop_on": config.alarms.stop_on,
    }
    # Without those that are off: a run of before they existed stays finished.
    return {
        "max_train_steps": run.max_train_steps,
        "max_time_s": run.max_time_s,
        **{key: value for key, value in criteria.items() if value},
    }


def is_trained(folder: RunFolder, config: Config) -> bool:
    return folder.status(STATUS).get("trained_to") == limits(config)


def mark_trained(folder: RunFolder, config: Config, stop: Stop) -> None:
    folder.set_status(STATUS, {"trained_to": limits(config), "stop": stop.to_json()})


def why_trained(folder: RunFolder) -> Stop | None:
    """What ended the training of a run that is trained; None where it is not said."""
    return from_json(folder.status(STATUS).get("stop"))


def is_finished(folder: RunFolder, config: Config, progress: Progress) -> bool:
    done = is_trained(folder, config) and not pins(folder)
    return done and not jobs_after(folder, config, progress)


def jobs_before(config: Config, progress: Progress) -> list[EvalJob]:
    """Those that are missing, while the policy is still the initial one."""
    if not config.eval.before_after or progress.train_step > 0:
        return []
    sampled = config.rollout.temperature
    wanted = [("floor", 0.0), ("before", sampled), ("before", 0.0)]
    return [
        EvalJob(phase=phase, temperature=temperature, train_step=0)
        for phase, temperature in wanted
        if progress.eval_of(phase, temperature) is None
    ]


def jobs_after(folder: RunFolder, config: Config, progress: Progress) -> list[EvalJob]:
    """Those that are missing for the final policy."""
    if not config.eval.before_after:
        return []
    status: Mapping[str, Any] = folder.status("trainer")
    train_step = int(status.get("train_step", progress.train_step))
    return [
        EvalJob(phase="after", temperature=temperature, train_step=train_step)
        for temperature in (config.rollout.temperature, 0.0)
        if progress.eval_of("after", temperature, train_step=train_step) is None
    ]
