"""What the supervisor watches while training goes on: the alarms and the stop criteria."""

from __future__ import annotations

from dart_gui.config import Config
from dart_gui.launch.alarms import Alarms, Change
from dart_gui.launch.progress import Event, Progress
from dart_gui.launch.service import ServiceView
from dart_gui.launch.stopping import Stop, StopRules, by_alarm


class Watch:
    """Fold every event of the run, those of earlier launches too; look at each tick of training."""

    def __init__(self, config: Config) -> None:
        self._stop_on = frozenset(config.alarms.stop_on)
        self._alarms = Alarms(config)
        self._rules = StopRules(config)
        self._alarmed: Stop | None = None

    def fold(self, event: Event, progress: Progress) -> None:
        self._alarms.fold(event, progress)
        self._rules.fold(event, progress)

    def begin(self, now: float) -> None:
        """Training starts. An alarm that was up before does not end it: it would at once."""
        self._alarms.begin(now)
        self._alarmed = None

    def look(self, service: ServiceView | None, now: float) -> list[Change]:
        """The alarms that are raised or cleared now."""
        changes = self._alarms.check(service, now)
        for change in changes:
            if change.raised and change.reading.name in self._stop_on and self._alarmed is None:
                self._alarmed = by_alarm(change.reading.key, change.reading.text)
        return changes

    def decision(self) -> Stop | None:
        """Why training is to stop now, if it is."""
        return self._rules.decision() or self._alarmed
