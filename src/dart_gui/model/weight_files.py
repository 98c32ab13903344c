"""Whether the safetensors files of a folder are whole, and of the same tensors as another folder's.

Reads headers only, without torch: what a server in another process would fail at half way is found
before it is asked. The format: 8 bytes (little endian) of header length, a JSON header that gives each
tensor's dtype, shape and byte range, then the bytes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dart_gui.errors import ConfigError, DataError, boundary
from dart_gui.model.folder import check_model_folder

Shapes = dict[str, tuple[int, ...]]
_MAX_HEADER_BYTES = 100 * 2**20
_BLOCK_BYTES = 64 * 2**10
_BLOCKS_PER_FILE = 64


def read_shapes(folder: Path) -> Shapes:
    """The shape of each tensor in ``folder``.

    Raises:
        DataError: the folder is no model, a file is cut off or is not safetensors, or a file that
            the index names is missing.
    """
    try:
        check_model_folder(folder)
    except ConfigError as error:
        raise DataError(f"cannot take the weights {folder}: {error}") from None
    shapes: Shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        shapes |= file_shapes(path)
    _check_index(folder, shapes)
    return shapes


def check_same_tensors(folder: Path, expected: Shapes) -> Shapes:
    """Raises:
    DataError: as :func:`read_shapes`; or names and shapes differ from ``expected``.
    """
    found = read_shapes(folder)
    wrong = [name for name in expected if found.get(name) != expected[name]]
    wrong += [name for name in found if name not in expected]
    if wrong:
        raise DataError(
            f"{folder} holds other tensors than the model in service: {len(wrong)} of "
            f"{len(expected)} missing, new or of another shape, e.g. {sorted(wrong)[:3]}"
        )
    return found


def sample_digest(folder: Path) -> str:
    """A digest of evenly spaced blocks of each file: equal for equal weights, and different for all
    but the smallest changes, at the cost of a few megabytes of reading."""
    digest = hashlib.sha256()
    with boundary(DataError, f"reading the weights {folder}"):
        for path in sorted(folder.glob("*.safetensors")):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            stride = max(_BLOCK_BYTES, size // _BLOCKS_PER_FILE)
            with path.open("rb") as file:
                for at in range(0, size, stride):
                    file.seek(at)
                    digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def file_shapes(path: Path) -> Shapes:
    """The shape of each tensor in one file.

    Raises:
        DataError: it is cut off or is not safetensors.
    """
    return {name: tuple(facts["shape"]) for name, facts in read_header(path)[0].items()}


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """``dtype``, ``shape`` and ``data_offsets`` of each tensor of a safetensors file, and the byte at
    which these offsets begin.

    Raises:
        DataError: the file is cut off or is not safetensors.
    """
    with boundary(DataError, f"reading the header of {path}"):
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 0 < header_bytes <= min(size - 8, _MAX_HEADER_BYTES):
                raise DataError(f"{path} of {size} bytes is cut off, or not a safetensors file")
            header: dict[str, Any] = json.loads(file.read(header_bytes))
        tensors = {name: facts for name, facts in header.items() if name != "__metadata__"}
        begin = 8 + header_bytes
        end = begin + max((facts["data_offsets"][1] for facts in tensors.values()), default=0)
        if size != end:
            raise DataError(f"{path} has {size} bytes, its header says {end}")
        return tensors, begin


def _check_index(folder: Path, shapes: Shapes) -> None:
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        return
    with boundary(DataError, f"reading {path}"):
        named = json.loads(path.read_text())["weight_map"]
    missing = sorted(set(named) - set(shapes))
    if missing:
        raise DataError(
            f"{folder} lacks {len(missing)} tensors that its index names, e.g. {missing[:3]}"
        )
