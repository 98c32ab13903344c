"""The ledger as the supervisor reads it: opened when it is first needed, never written."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dart_gui.config import Config
from dart_gui.errors import DataError
from dart_gui.launch.run_folder import RunFolder
from dart_gui.types import WeightsRef

if TYPE_CHECKING:
    from dart_gui.data.manager import DataManager

SHOWN_GROUPS = ("open", "complete", "claimed", "trained", "skipped", "cancelled")


class LedgerView:
    def __init__(self, folder: RunFolder, config: Config) -> None:
        self._folder = folder
        self._config = config
        self._data: DataManager | None = None
        self._counts: Mapping[str, int] = {}

    def check(self) -> None:
        """Raises ``DataError`` where it cannot be used: the modules would fail over it, one by one."""
        if self._config.data.ledger or (self._folder.path / "ledger.sqlite").exists():
            self._open()
            self.close()

    def counts(self) -> Mapping[str, int]:
        """Groups by state. The last known ones where the ledger is busy: to look must not stop a
        run."""
        with contextlib.suppress(DataError):
            groups = self._open().counts()["groups"]
            if isinstance(groups, dict):
                self._counts = {name: groups.get(name, 0) for name in SHOWN_GROUPS}
        return self._counts

    def latest_weights(self) -> WeightsRef | None:
        return self._open().latest_weights()

    def close(self) -> None:
        if self._data is not None:
            self._data.close()
            self._data = None

    def _open(self) -> DataManager:
        if self._data is None:
            # SQLAlchemy takes half a second to import.
            from dart_gui.data.manager import DataManager

            self._data = DataManager.open(self._folder.path, self._config)
        return self._data
