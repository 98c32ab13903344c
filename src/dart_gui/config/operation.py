"""The run as a whole: its end, its alarms, its processes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dart_gui.config.section import Fraction, NonNegativeInt, PositiveInt, Seconds, Section


class RunConfig(Section):
    dir: str = "runs"
    """Folder that holds one folder per run."""
    seed: int = 0
    """Seed of the task sampler and of the sampling of every episode."""
    max_train_steps: NonNegativeInt = 0
    """Stop after this many train steps; 0 for no such limit."""
    max_time_s: float = Field(default=1200.0, gt=0)
    """Stop after this many seconds of training (time while the run was stopped does not count)."""
    target_success: Fraction = 0.0
    """Stop once the success rate reaches this: that of an evaluation while training where there are
    such (``eval.every``), else that of the last 200 training episodes. 0 for no target."""
    patience: NonNegativeInt = 0
    """Stop after this many evaluations while training without progress; where there are none, after
    this many train steps in which the success of the last 200 training episodes made none. 0 for
    never."""
    min_delta: Fraction = 0.0
    """Progress is a success rate that exceeds the best one so far by more than this."""


AlarmName = Literal[
    "mismatch_kl",
    "entropy_collapse",
    "no_variance",
    "idle",
    "nonfinite_gradient",
    "success_drop",
]


class AlarmsConfig(Section):
    mismatch_kl: float = Field(default=0.1, ge=0)
    """Of the KL between the policy that sampled and the trainer's, per token, mean of 5 train steps;
    cleared below half of it. 0 for no such alarm."""
    entropy_fraction: Fraction = 0.2
    """Of the entropy of the first 5 train steps: alarm where the mean of the last 5 is below this
    share, cleared at 1.5 times it. 0 for no such alarm."""
    no_variance_groups: NonNegativeInt = 32
    """Alarm where this many groups in a row had equal rewards throughout, so that none of them can be
    learnt from; cleared by the first that differs. 0 for no such alarm."""
    idle_s: float = Field(default=300.0, ge=0)
    """Alarm where the trainer, the runner or a rollout worker had nothing to do for so long; cleared
    when it works again. 0 for no such alarm."""
    nonfinite_gradient: bool = True
    """Alarm at an update that was left out since its gradient was not finite; cleared after 10 train
    steps without one."""
    success_drop: Fraction = 0.25
    """Alarm where the success of the last 200 training episodes is so far below its best; cleared at
    half of that. 0 for no such alarm."""
    stop_on: list[AlarmName] = []
    """Alarms that end the training."""


class LaunchConfig(Section):
    threads: PositiveInt = 1
    """torch threads of each process. More than one on busy cores is slower, not faster."""
    max_restarts: NonNegativeInt = 5
    """Times that the supervisor restarts one process in a row before it gives up. One that ran for
    five minutes is counted anew."""
    stop_timeout_s: Seconds = 20.0
    """Time for a process to end by itself before it is killed."""
    tensorboard: bool = True
