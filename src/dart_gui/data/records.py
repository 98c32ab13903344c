"""What the data manager hands out: frozen records."""

from __future__ import annotations

from dataclasses import dataclass

from dart_gui.types import StopReason, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTrajectory:
    trajectory: Trajectory
    advantage: float  # the same for each of its steps
    weight: float  # of the loss of each of its steps
    staleness: int  # of its oldest step, in train steps (data.staleness.distance)
    selected: list[bool] | None = None  # the steps to train; None: all
    foreign: bool = False  # borrowed: trained without a ratio, with a positive weight only


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchGroup:
    group_id: str
    task_id: str
    # The stored members, at least half of the group; last, a success that it may have borrowed.
    trajectories: list[TrainTrajectory]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The groups of one train step, claimed for this trainer alone."""

    train_step: int
    trainer_version: int  # at consumption
    groups: list[BatchGroup]
    staleness_mean: float  # over trajectories
    staleness_max: int

    @property
    def trajectories(self) -> list[TrainTrajectory]:
        return [item for group in self.groups for item in group.trajectories]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    """A durable checkpoint: where a trainer can resume."""

    train_step: int
    path: str
    policy_version: int | None  # of its weights; None where they were never published


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryFacts:
    """A row of the ledger about one stored trajectory, without its steps."""

    id: int  # counts up in the order of storing
    trajectory_id: str
    group_id: str
    episode_id: str
    task_id: str
    seed: int
    attempt: int
    stop_reason: StopReason
    success: bool
    reward: float
    num_steps: int
    num_response_tokens: int
    version_min: int
    version_max: int
    started_at: float
    ended_at: float
    model_s: float
    env_s: float
    stored_at: float
    env_version: str | None = None  # None where it is not known


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStats:
    """Of the latest stored trajectories of one task."""

    num: int
    success_rate: float
    mean_reward: float
    mean_steps: float
