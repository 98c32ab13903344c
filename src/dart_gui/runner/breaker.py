"""Circuit breaking: when everything fails, wait instead of burning the attempts of the plan."""

from __future__ import annotations

from enum import StrEnum


class BreakerState(StrEnum):
    CLOSED = "closed"  # episodes start freely
    OPEN = "open"  # none starts before a time
    PROBING = "probing"  # one has started; its end decides


TRANSITIONS: dict[BreakerState, frozenset[BreakerState]] = {
    BreakerState.CLOSED: frozenset({BreakerState.OPEN}),
    BreakerState.OPEN: frozenset({BreakerState.PROBING, BreakerState.CLOSED}),
    BreakerState.PROBING: frozenset({BreakerState.OPEN, BreakerState.CLOSED}),
}


class Breaker:
    """Opens after ``threshold`` failures in a row, for ``base_s`` seconds, then twice as long for
    each probe that fails, up to ``max_s``. Any success closes it.

    A pure state machine: the caller passes the time.
    """

    def __init__(self, *, threshold: int, base_s: float = 0.5, max_s: float = 30.0) -> None:
        self._threshold = threshold
        self._base_s = base_s
        self._max_s = max_s
        self._state = BreakerState.CLOSED
        self._num_failures = 0  # in a row
        self._delay_s = base_s
        self._open_until = 0.0

    @property
    def state(self) -> BreakerState:
        return self._state

    def allows(self, now: float) -> bool:
        """Whether an episode may start."""
        if self._state is BreakerState.OPEN:
            return now >= self._open_until
        return self._state is BreakerState.CLOSED

    def started(self) -> None:
        """An episode that was allowed has started."""
        if self._state is BreakerState.OPEN:
            self._move(BreakerState.PROBING)

    def succeeded(self) -> None:
        self._num_failures = 0
        self._delay_s = self._base_s
        if self._state is not BreakerState.CLOSED:
            self._move(BreakerState.CLOSED)

    def failed(self, now: float) -> None:
        self._num_failures += 1
        # A failure while it is open is of an episode that started before: it proves nothing new.
        if self._state is BreakerState.PROBING:
            self._delay_s = min(self._max_s, self._delay_s * 2)
            self._open(now)
        elif self._state is BreakerState.CLOSED and self._num_failures >= self._threshold:
            self._open(now)

    def _open(self, now: float) -> None:
        self._open_until = now + self._delay_s
        self._move(BreakerState.OPEN)

    def _move(self, state: BreakerState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise ValueError(f"breaker: {self._state} -> {state}")
        self._state = state
