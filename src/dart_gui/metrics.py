"""Measurements of a run: one JSON line an event in ``metrics.jsonl``, which every process appends to.

Keys are ``area/noun``; durations end in ``_s``. Other loggers (TensorBoard) read this file.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class MetricsWriter:
    """Appends events. One ``write`` a line on an ``O_APPEND`` descriptor: processes do not mix lines."""

    def __init__(self, path: Path, process: str, clock: Callable[[], float] = time.time) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._process = process
        self._clock = clock

    def log(self, event: str, **values: Any) -> None:
        """``values`` may hold nested JSON; a float that is not finite becomes null."""
        line = {"at": round(self._clock(), 3), "process": self._process, "event": event}
        text = json.dumps(_finite({**line, **values}), separators=(",", ":"))
        os.write(self._fd, text.encode() + b"\n")

    def close(self) -> None:
        os.close(self._fd)


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
