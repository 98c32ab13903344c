"""Weight updates as jobs that can be watched: one for each published version.

A job's state is read off the workers, not told by whoever brings it about: a service that was
restarted goes on where it was. Updates are serial: one at a time is rolling, and one that no worker
has begun when a newer version comes is superseded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from dart_gui.errors import DataError
from dart_gui.rollout.states import WorkerSlot, WorkerState
from dart_gui.types import WeightsRef

_MAX_REMEMBERED = 100


class UpdateState(StrEnum):
    WAITING = "waiting"  # no worker has begun
    ROLLING = "rolling"  # some worker has the version, or is about to
    DONE = "done"  # every worker serves it, or a newer one
    FAILED = "failed"  # a worker refused it: the others keep what they have
    SUPERSEDED = "superseded"  # a newer version came before it was done


TRANSITIONS: dict[UpdateState, frozenset[UpdateState]] = {
    UpdateState.WAITING: frozenset(UpdateState) - {UpdateState.WAITING},
    UpdateState.ROLLING: frozenset({UpdateState.DONE, UpdateState.FAILED, UpdateState.SUPERSEDED}),
    UpdateState.DONE: frozenset(),
    UpdateState.FAILED: frozenset(),
    UpdateState.SUPERSEDED: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateJob:
    update_id: str
    weights: WeightsRef
    state: UpdateState
    created_at: float
    ended_at: float | None = None
    error: str | None = None

    @property
    def ended(self) -> bool:
        return not TRANSITIONS[self.state]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> UpdateJob:
        """Raises:
        DataError: not what :meth:`to_json` gives.
        """
        try:
            weights = WeightsRef(**tree["weights"])
            return cls(**{**tree, "weights": weights, "state": UpdateState(tree["state"])})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{tree!r:.200} is not an update job: {error!r}") from None


class Updates:
    """``refusal(version)`` is why the fleet refuses a version, None while it does not. ``save`` gets
    all jobs after each change."""

    def __init__(
        self,
        slots: Sequence[WorkerSlot],
        *,
        refusal: Callable[[int], str | None],
        jobs: Iterable[UpdateJob] = (),
        save: Callable[[list[UpdateJob]], None] = lambda _: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._slots = slots
        self._refusal = refusal
        self._save = save
        self._now = now
        self._jobs = {job.update_id: job for job in jobs}
        for slot in slots:
            slot.listeners.append(self.observe)

    def begin(self, weights: WeightsRef) -> UpdateJob:
        """The job of a version that was just accepted; those that no worker has begun are
        superseded."""
        job = UpdateJob(
            update_id=f"update-{weights.policy_version}",
            weights=weights,
            state=UpdateState.WAITING,
            created_at=self._now(),
        )
        self.observe()
        for other in self._open():
            if other.state is UpdateState.WAITING:
                self._move(other, UpdateState.SUPERSEDED)
        self._jobs[job.update_id] = job
        for old in list(self._jobs)[:-_MAX_REMEMBERED]:
            del self._jobs[old]
        self._save(list(self._jobs.values()))
        return job

    def all(self) -> list[UpdateJob]:
        """Oldest first."""
        self.observe()
        return list(self._jobs.values())

    def get(self, update_id: str) -> UpdateJob | None:
        self.observe()
        return self._jobs.get(update_id)

    def observe(self) -> None:
        changed = False
        for job in self._open():
            state, error = self._look(job, is_first=job is self._open()[0])
            if state is not job.state:
                self._move(job, state, error)
                changed = True
        if changed:
            self._save(list(self._jobs.values()))

    def _open(self) -> list[UpdateJob]:
        return [job for job in self._jobs.values() if not job.ended]

    def _look(self, job: UpdateJob, *, is_first: bool) -> tuple[UpdateState, str | None]:
        version = job.weights.policy_version
        if reason := self._refusal(version):
            return UpdateState.FAILED, reason
        serving = [
            slot.state is WorkerState.READY and slot.policy_version >= version
            for slot in self._slots
            if not slot.held
        ]
        if all(serving):
            return UpdateState.DONE, None
        under_way = (WorkerState.DRAINING, WorkerState.LOADING)
        is_begun = is_first and any(slot.state in under_way for slot in self._slots)
        if any(serving) or is_begun:
            return UpdateState.ROLLING, None
        return job.state, None

    def _move(self, job: UpdateJob, state: UpdateState, error: str | None = None) -> None:
        if state not in TRANSITIONS[job.state]:
            raise ValueError(f"{job.update_id} cannot go from {job.state} to {state}")
        ended_at = None if TRANSITIONS[state] else self._now()
        self._jobs[job.update_id] = replace(job, state=state, error=error, ended_at=ended_at)
