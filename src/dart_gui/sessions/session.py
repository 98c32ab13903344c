"""One episode that a foreign agent program drives: its model calls as they come, and its end."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from dart_gui.errors import DataError
from dart_gui.types import Completion, PlannedEpisode, Step, StopReason, Trajectory


class SessionState(StrEnum):
    OPEN = "open"  # takes model calls
    ENDING = "ending"  # its end is being recorded
    STORED = "stored"  # a trajectory
    FAILED = "failed"  # a failed attempt, which is planned again


TRANSITIONS: dict[SessionState, frozenset[SessionState]] = {
    SessionState.OPEN: frozenset({SessionState.ENDING}),
    SessionState.ENDING: frozenset(
        {SessionState.OPEN, SessionState.STORED, SessionState.FAILED}  # OPEN: it was not recorded
    ),
    SessionState.STORED: frozenset(),
    SessionState.FAILED: frozenset(),
}


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    planned: PlannedEpisode
    started_at: float
    touched_at: float
    state: SessionState = SessionState.OPEN
    num_calls: int = 0  # begun; the place of a call in the trajectory
    num_in_flight: int = 0
    steps: dict[int, Step] = field(default_factory=dict)  # by that place
    images: dict[str, bytes] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def session_id(self) -> str:
        """An attempt's: what a client of an earlier attempt still sends must not be taken for it."""
        return f"{self.planned.episode_id}.{self.planned.attempt}"

    def move(self, state: SessionState) -> None:
        """Raises:
        DataError: the session has ended, or is about to.
        """
        if state not in TRANSITIONS[self.state]:
            raise DataError(
                f"session {self.session_id} is {self.state}: it cannot be {state} again"
            )
        self.state = state

    def begin_call(self, now: float) -> int:
        """The index of the step that the call makes.

        Raises:
            DataError: the session takes no calls any more.
        """
        if self.state is not SessionState.OPEN:
            raise DataError(f"session {self.session_id} is {self.state}: it takes no model calls")
        self.touched_at = now
        self.num_in_flight += 1
        self.num_calls += 1
        return self.num_calls - 1

    def end_call(self, now: float) -> None:
        self.num_in_flight -= 1
        self.touched_at = now

    def add(
        self, index: int, completion: Completion, images: Mapping[str, bytes], model_s: float
    ) -> None:
        self.steps[index] = Step(index=index, completion=completion, actions=[], model_s=model_s)
        self.images.update({key: images[key] for key in completion.image_hashes})

    def seed(self, index: int) -> int:
        """Of a call that names none: no two calls of a group share one."""
        text = f"{self.planned.seed}:{index}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def trajectory(
        self, end: SessionEnd, *, run_id: str, instruction: str, now: float
    ) -> Trajectory:
        """The record. A call that failed leaves no step: the others close ranks.

        Raises:
            DataError: there was no model call, or one is still under way.
        """
        if self.num_in_flight:
            raise DataError(f"{self.num_in_flight} model calls of {self.session_id} are under way")
        if not self.steps:
            raise DataError(
                f"session {self.session_id} has no model call: there is nothing to store"
            )
        steps = [self.steps[index] for index in sorted(self.steps)]
        return Trajectory(
            trajectory_id=self.planned.episode_id,
            run_id=run_id,
            group_id=self.planned.group_id,
            task=self.planned.task,
            attempt=self.planned.attempt,
            instruction=instruction,
            steps=[_at(step, index) for index, step in enumerate(steps)],
            stop_reason=end.stop_reason,
            reward=end.reward,
            success=end.success,
            started_at=self.started_at,
            ended_at=now,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnd:
    reward: float  # in [0, 1]
    success: bool
    stop_reason: StopReason

    @classmethod
    def parse(cls, body: Mapping[str, object]) -> SessionEnd:
        """Raises:
        DataError: says what each field may be.
        """
        reward = body.get("reward")
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            raise DataError(f"reward = {reward!r:.40} must be a number in [0, 1]")
        if not math.isfinite(reward) or not 0 <= reward <= 1:
            raise DataError(f"reward = {reward} must be in [0, 1]")
        success = body.get("success", reward >= 1)
        if not isinstance(success, bool):
            raise DataError(f"success = {success!r:.40} must be true or false")
        allowed = [reason.value for reason in StopReason if not reason.is_infrastructure]
        text = body.get("stop_reason", StopReason.DONE.value)
        if text not in allowed:
            raise DataError(f"stop_reason = {text!r:.40} must be one of {', '.join(allowed)}")
        return cls(reward=float(reward), success=success, stop_reason=StopReason(str(text)))


def _at(step: Step, index: int) -> Step:
    return Step(index=index, completion=step.completion, actions=step.actions, model_s=step.model_s)
