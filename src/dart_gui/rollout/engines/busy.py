"""How long an engine had requests in flight."""

from __future__ import annotations

import threading
from collections.abc import Callable

from dart_gui.errors import PolicyError


class BusyTime:
    """Counts requests in flight, and the seconds with at least one. For any number of threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._num_in_flight = 0
        self._total_s = 0.0
        self._since = 0.0

    @property
    def total_s(self) -> float:
        with self._lock:
            running = self._clock() - self._since if self._num_in_flight else 0.0
            return self._total_s + running

    def enter(self) -> None:
        with self._lock:
            if self._num_in_flight == 0:
                self._since = self._clock()
            self._num_in_flight += 1

    def leave(self) -> None:
        with self._lock:
            self._num_in_flight -= 1
            if self._num_in_flight == 0:
                self._total_s += self._clock() - self._since

    def check_drained(self) -> None:
        """Raises ``PolicyError`` while requests are in flight."""
        with self._lock:
            if self._num_in_flight:
                raise PolicyError(f"{self._num_in_flight} requests are in flight: drain first")
