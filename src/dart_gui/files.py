"""Files that are there whole or not at all, whatever the disk does."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dart_gui.errors import DataError

ADVICE = "Check that its folder can be written to and that its disk has space (df -h)"


@contextmanager
def writing(what: str, *, advice: str = ADVICE) -> Iterator[None]:
    """Turn the ``OSError`` of a failed write into a ``DataError`` that says what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{what} cannot be written: {error.strerror or error}. {advice}") from error


def write_whole(
    path: Path, data: bytes | str, *, what: str = "", advice: str = ADVICE, sync: bool = False
) -> None:
    """Write ``path`` under a temporary name and rename it, so that no reader sees a part of it.

    Its folder is made where missing. ``sync`` brings it to the disk before the name changes, so that
    a power cut leaves the old file or the new one. ``what`` names it in the error.

    Raises:
        DataError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}.tmp")
    with writing(f"{what} {path}".strip(), advice=advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
