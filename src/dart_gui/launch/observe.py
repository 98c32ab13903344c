"""The supervisor's eyes: each look reads the truth anew, from where it is.

Processes are asked by the supervisor itself; the rest is here: the metrics file (incrementally),
the rollout service, the ledger's counts. A source that does not answer is shown as such and stops
nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dart_gui.launch.process import ManagedProcess
from dart_gui.launch.progress import Event, MetricsTail, Progress
from dart_gui.launch.service import ServiceView
from dart_gui.launch.view import ProcessView, Snapshot

if TYPE_CHECKING:
    from dart_gui.config import Config
    from dart_gui.launch.tensorboard import TensorBoardSink

log = logging.getLogger(__name__)
POLL_EVERY_S = 2.0


@dataclass(slots=True)
class Utilisation:
    """Share of the time between two looks in which each worker computed."""

    last: dict[str, tuple[float, float]] = field(default_factory=dict)  # worker -> (now, busy_s)
    share: dict[str, float] = field(default_factory=dict)

    def look(self, service: ServiceView | None, now: float) -> None:
        for worker in service.workers if service else ():
            then, busy_s = self.last.get(worker.worker_id, (now, worker.busy_s))
            # busy_s begins again at 0 where a worker was replaced.
            if now > then and worker.busy_s >= busy_s:
                share = (worker.busy_s - busy_s) / (now - then)
                self.share[worker.worker_id] = min(1.0, share)
            self.last[worker.worker_id] = (now, worker.busy_s)


class Observer:
    def __init__(
        self,
        tail: MetricsTail,
        *,
        read_service: Callable[[], ServiceView | None],
        read_counts: Callable[[], Mapping[str, int]] = dict,
        sink: TensorBoardSink | None = None,
        folds: Sequence[Callable[[Event, Progress], None]] = (),
    ) -> None:
        """``folds`` see each event, those of the history too, after ``progress`` has folded it."""
        self.progress = Progress()
        self.service: ServiceView | None = None
        self._tail = tail
        self._read_service = read_service
        self._read_counts = read_counts
        self._sink = sink
        self._folds = folds
        self._counts: Mapping[str, int] = {}
        self._utilisation = Utilisation()
        self._next_poll_at = 0.0

    def skip_history(self) -> None:
        """Fold what a resumed run has already measured; its TensorBoard events exist."""
        for event in self._tail.read():
            self._fold(event)
        self.progress.trained_at = None

    def _fold(self, event: Event) -> None:
        self.progress.fold(event)
        for fold in self._folds:
            fold(event, self.progress)

    def look(self, now: float) -> None:
        for event in self._tail.read():
            self._fold(event)
            self._feed(event)
        # A clock that was set back must not blind us until it is where it was.
        if not self._next_poll_at - POLL_EVERY_S <= now < self._next_poll_at:
            self._next_poll_at = now + POLL_EVERY_S
            self.poll(now)

    def _feed(self, event: Event) -> None:
        if self._sink is None:
            return
        try:
            self._sink.write([event], self.progress)
        except OSError as error:
            log.warning("TensorBoard is no longer fed, metrics.jsonl has all of it: %s", error)
            self._sink.abandon()
            self._sink = None

    def poll(self, now: float) -> None:
        """Ask the service and the ledger now."""
        self.service = self._read_service()
        self._utilisation.look(self.service, now)
        self._counts = self._read_counts()

    def snapshot(
        self,
        config: Config,
        *,
        run_id: str,
        phase: str,
        detail: str = "",
        now: float,
        processes: Sequence[ManagedProcess],
    ) -> Snapshot:
        return Snapshot(
            run_id=run_id,
            phase=phase,
            detail=detail,
            now=now,
            config=config,
            progress=self.progress,
            processes=[
                ProcessView(name=each.name, state=each.state, restarts=each.restarts)
                for each in processes
            ],
            service=self.service,
            worker_busy=dict(self._utilisation.share),
            counts=self._counts,
        )

    def close(self) -> None:
        if self._sink is not None:
            self._sink.close()
