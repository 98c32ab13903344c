"""Whether the folder of a checkpoint or of published weights is whole, told from its files alone."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dart_gui.errors import DataError
from dart_gui.model.adapter_files import read_adapter
from dart_gui.model.folder import is_adapter

OPTIMIZER_FILE = "optimizer.pt"
STATE_FILE = "state.json"
_HEADER_SIZE = struct.Struct("<Q")


def weights_problems(folder: Path) -> Iterator[str]:
    """What is missing or cut off in a Hugging Face folder, or of an adapter's base; nothing where it is
    whole."""
    if not folder.is_dir():
        yield f"the folder {folder} is missing"
        return
    if _read_json(folder / "config.json") is None:
        yield f"{folder / 'config.json'} is not a JSON object"
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        yield f"{folder} holds no *.safetensors"
    for file in files:
        if not _is_whole_safetensors(file):
            yield f"{file} is cut off or damaged"
            return
    if is_adapter(folder):
        try:
            read_adapter(folder)
        except DataError as error:
            yield str(error)


def checkpoint_problems(folder: Path, train_step: int, *, fast: bool = False) -> Iterator[str]:
    """Those of its weights, of the optimizer's state (``fast``: without its check sums) and of
    ``state.json``, which must be of ``train_step``."""
    yield from weights_problems(folder)
    if not folder.is_dir():
        return
    state = _read_json(folder / STATE_FILE)
    if state is None or state.get("train_step") != train_step:
        yield f"{folder / STATE_FILE} is not of train step {train_step}"
    if not _is_whole_zip(folder / OPTIMIZER_FILE, fast=fast):
        yield f"{folder / OPTIMIZER_FILE} is cut off or damaged"


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _is_whole_safetensors(path: Path) -> bool:
    """Its size is that which its header promises.

    Format: 8 bytes of header size, the header (JSON), the tensors
    (https://huggingface.co/docs/safetensors/index#format).
    """
    try:
        with path.open("rb") as file:
            (size,) = _HEADER_SIZE.unpack(file.read(_HEADER_SIZE.size))
            if size > path.stat().st_size:
                return False
            header = json.loads(file.read(size))
        tensors = [value for name, value in header.items() if name != "__metadata__"]
        end = max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
        return path.stat().st_size == _HEADER_SIZE.size + size + end
    except (OSError, ValueError, struct.error, LookupError, TypeError, AttributeError):
        return False


def _is_whole_zip(path: Path, *, fast: bool) -> bool:
    """torch.save writes a zip file, whose directory is at the end."""
    try:
        with zipfile.ZipFile(path) as archive:
            return fast or archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError):
        return False
