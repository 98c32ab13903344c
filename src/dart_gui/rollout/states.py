"""The life of a rollout worker as the service sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class WorkerState(StrEnum):
    STARTING = "starting"  # the process starts and loads the model
    READY = "ready"  # takes requests
    DRAINING = "draining"  # takes no new request; those in flight finish at their version
    LOADING = "loading"  # takes new weights, with nothing in flight
    DEAD = "dead"  # the process is gone; a new one follows


TRANSITIONS: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STARTING: frozenset({WorkerState.READY, WorkerState.LOADING, WorkerState.DEAD}),
    WorkerState.READY: frozenset({WorkerState.DRAINING, WorkerState.DEAD}),
    WorkerState.DRAINING: frozenset({WorkerState.LOADING, WorkerState.DEAD}),
    WorkerState.LOADING: frozenset({WorkerState.READY, WorkerState.DEAD}),
    WorkerState.DEAD: frozenset({WorkerState.STARTING}),
}


@dataclass(slots=True, kw_only=True, eq=False)
class WorkerSlot:
    """State and counters of one worker; outlives the processes that fill it."""

    worker_id: str
    state: WorkerState = WorkerState.DEAD
    policy_version: int = 0
    num_in_flight: int = 0
    num_completed: int = 0
    busy_s: float = 0.0  # of all processes of this slot together
    restarts: int = 0
    held: bool = False  # taken out of service by hand
    max_in_flight: int | None = None  # below the router's own limit while KV cache is short
    kv_pressure: float = 0.0  # share of the KV cache in use; 0 where requests do not share one
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache, of the running process
    prefix_hits: int = 0  # of them found
    listeners: list[Callable[[], None]] = field(default_factory=list)

    def move(self, state: WorkerState) -> None:
        """Raises:
        ValueError: the table has no such transition; a programming error.
        """
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"{self.worker_id} cannot go from {self.state} to {state}")
        self.state = state
        self.notify()

    def notify(self) -> None:
        for listener in self.listeners:
            listener()
