"""Measurements of a run: one JSON line an event in ``metrics.jsonl``, which every process appends to.

Keys are ``area/noun``; durations end in ``_s``. Other loggers (TensorBoard) read this file.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dart_gui.files import writing

log = logging.getLogger(__name__)


class MetricsWriter:
    """Appends events. One ``write`` a line on an ``O_APPEND`` descriptor: processes do not mix lines.

    A disk that is full loses measurements, and ends no run for them.

    Raises:
        DataError: the file cannot be opened.
    """

    def __init__(self, path: Path, process: str, clock: Callable[[], float] = time.time) -> None:
        with writing(f"the metrics {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._path = path
        self._process = process
        self._clock = clock
        self._num_lost = 0  # since the last event that was written
        self._is_torn = _ends_torn(path)  # the file ends within a line

    def log(self, event: str, **values: Any) -> bool:
        """``values`` may hold nested JSON; a float that is not finite becomes null.

        False where it could not be written; the next event that is says in ``num_lost`` how many
        went before it.
        """
        line = {"at": round(self._clock(), 3), "process": self._process, "event": event}
        if self._num_lost:
            line["num_lost"] = self._num_lost
        text = json.dumps(_finite({**line, **values}), separators=(",", ":"))
        return self._write(b"\n" * self._is_torn + text.encode() + b"\n")

    def _write(self, data: bytes) -> bool:
        try:
            num_written, why = os.write(self._fd, data), "the disk is full"
        except OSError as error:
            num_written, why = 0, error.strerror or str(error)
        if num_written == len(data):
            self._num_lost, self._is_torn = 0, False
            return True
        self._is_torn = self._is_torn or num_written > 0
        if not self._num_lost:
            log.warning("cannot write %s: %s. Events are lost until it can", self._path, why)
        self._num_lost += 1
        return False

    def close(self) -> None:
        os.close(self._fd)


def _ends_torn(path: Path) -> bool:
    """Whether the last line was cut off by a crash: what is appended to it would be lost with it."""
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a file, in order; a line cut off by a crash is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
