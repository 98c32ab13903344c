"""What the runner says of itself: a ``runner`` event a second, ``episode`` for each trajectory."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from dart_gui.types import Step, StopReason, Trajectory

_EMA_DECAY = 0.95  # per episode: a memory of about twenty
_WINDOW_EPISODES = 100
_WINDOW_STEPS = 400
_RATE_WINDOW_S = 30.0


class Tally:
    """Counts and running means since the start of the process. Times are of a monotonic clock."""

    def __init__(self, *, started_at: float) -> None:
        self._started_at = started_at
        self._ended_at: deque[float] = deque()  # of the trajectories in the rate window
        self._successes: deque[bool] = deque(maxlen=_WINDOW_EPISODES)
        self._model_s: deque[float] = deque(maxlen=_WINDOW_STEPS)
        self._env_s: deque[float] = deque(maxlen=_WINDOW_STEPS)
        self._failures: Counter[StopReason] = Counter()
        self._ema_sum = 0.0
        self._ema_weight = 0.0  # dividing by it takes away the bias towards the first episodes
        self._num_episodes = 0
        self._num_steps = 0

    def stored(self, trajectory: Trajectory, now: float) -> None:
        self._num_episodes += 1
        self._num_steps += len(trajectory.steps)
        self._ended_at.append(now)
        self._successes.append(trajectory.success)
        self._ema_sum = _EMA_DECAY * self._ema_sum + trajectory.success
        self._ema_weight = _EMA_DECAY * self._ema_weight + 1.0
        for step in trajectory.steps:
            self._model_s.append(step.model_s)
            self._env_s.append(step.env_s)

    def failed(self, reason: StopReason) -> None:
        self._failures[reason] += 1

    def summary(self, now: float) -> dict[str, Any]:
        """The values of the ``runner`` event; a mean of nothing is None."""
        while self._ended_at and self._ended_at[0] < now - _RATE_WINDOW_S:
            self._ended_at.popleft()
        span_s = min(_RATE_WINDOW_S, max(1.0, now - self._started_at))
        return {
            "num_episodes": self._num_episodes,
            "num_steps": self._num_steps,
            "episodes_per_s": round(len(self._ended_at) / span_s, 3),
            "success_ema": self._ema_sum / self._ema_weight if self._ema_weight else None,
            "success_window": _mean(self._successes),
            "model_s": _mean(self._model_s),
            "env_s": _mean(self._env_s),
            "num_failures": self._failures.total(),
            "failures": {reason.value: count for reason, count in sorted(self._failures.items())},
        }


def episode_values(trajectory: Trajectory) -> dict[str, Any]:
    """The values of the ``episode`` event."""
    return {
        "trajectory_id": trajectory.trajectory_id,
        "group_id": trajectory.group_id,
        "task_id": trajectory.task.task_id,
        "reward": trajectory.reward,
        "success": trajectory.success,
        "num_steps": len(trajectory.steps),
        "num_response_tokens": sum(_num_tokens(step) for step in trajectory.steps),
        "stop_reason": trajectory.stop_reason.value,
        "attempt": trajectory.attempt,
        "version_min": trajectory.version_min,
        "version_max": trajectory.version_max,
        "wall_s": round(trajectory.ended_at - trajectory.started_at, 4),
    }


def _num_tokens(step: Step) -> int:
    return len(step.completion.response_ids)


def _mean(values: deque[float] | deque[bool]) -> float | None:
    return sum(values) / len(values) if values else None
