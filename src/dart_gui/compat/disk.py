"""The published on-disk layout of a trajectory, as its trainer reads it.

``<save_dir>/<task_id>_<trace_id>/`` with ``image_{s}.png``, ``data_for_step_{s+1}.pt``,
``final_messages.json`` and ``reward.txt``. Names come from the network: they are checked, and each file
appears whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dart_gui.compat.torch_file import StepData
from dart_gui.errors import DataError
from dart_gui.files import write_whole

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_STEP = 100_000


def check_name(kind: str, value: Any) -> str:
    """Raises:
    DataError: not a plain file name.
    """
    if not isinstance(value, str) or not _NAME.fullmatch(value) or ".." in value:
        raise DataError(
            f"{kind} = {value!r:.80} must be letters, digits, '.', '_' and '-' only, beginning with "
            "a letter or digit: it becomes the name of a folder"
        )
    return value


def check_step(value: Any) -> int:
    """Raises:
    DataError: not a count.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_STEP:
        raise DataError(f"step = {value!r:.40} must be an integer from 0 to {_MAX_STEP}")
    return value


class PublishedFolder:
    def __init__(self, save_dir: Path, task_id: str, trace_id: str) -> None:
        check_name("task_id", task_id)
        check_name("trace_id", trace_id)
        self.path = save_dir / f"{task_id}_{trace_id}"

    def save_step(self, step: int, png: bytes | None, data: StepData) -> None:
        """The newest screenshot of the prompt, None where it shows none, and the reply's tokens."""
        if png is not None:
            self._write(f"image_{step}.png", png)
        self._write(f"data_for_step_{step + 1}.pt", data.dump())

    def save_end(self, messages: Sequence[Any], reward: float) -> None:
        """The reward comes last: a folder that has it is complete."""
        text = json.dumps(list(messages), ensure_ascii=False, indent=2)
        self._write("final_messages.json", text.encode())
        self._write("reward.txt", str(reward).encode())

    def _write(self, name: str, data: bytes) -> None:
        write_whole(self.path / name, data, what="the trajectory's")
