"""Files of ``torch.save`` for a dict of one-dimensional CPU tensors, without torch.

The format (torch >= 1.6): an uncompressed zip with ``data.pkl``, a pickle whose tensors are
``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)``, each storage a
persistent id ``("storage", type, key, device, numel)``, and its bytes in ``data/<key>``. The rollout
service writes one such file per model call, and torch would cost it a gigabyte of memory.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}


def dump_tensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    """The file as bytes. ``tensors``: float32 or int64 arrays of shape [n].

    Raises:
        KeyError: another dtype.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _pickle(tensors))
        archive.writestr("archive/byteorder", "little")
        for key, array in enumerate(tensors.values()):
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            archive.writestr(f"archive/data/{key}", little.tobytes())
        archive.writestr("archive/version", "3\n")
    return buffer.getvalue()


def _pickle(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Protocol 2. The opcodes' names are those of the standard library's ``pickle``."""
    program = [b"\x80\x02", b"}", b"("]  # PROTO 2, EMPTY_DICT, MARK
    for key, (name, array) in enumerate(tensors.items()):
        program += [_text(name), _tensor(key, _STORAGES[array.dtype.name], len(array))]
    return b"".join([*program, b"u", b"."])  # SETITEMS, STOP


def _tensor(key: int, storage: str, count: int) -> bytes:
    return b"".join(
        [
            _global("torch._utils", "_rebuild_tensor_v2"),
            b"(",  # MARK: the arguments
            b"(",  # MARK: the persistent id of the storage
            *(_text("storage"), _global("torch", storage), _text(str(key)), _text("cpu")),
            *(_integer(count), b"t", b"Q"),  # TUPLE, BINPERSID
            _integer(0),  # offset
            *(_integer(count), b"\x85"),  # TUPLE1: size
            *(_integer(1), b"\x85"),  # stride
            b"\x89",  # NEWFALSE: requires_grad
            *(_global("collections", "OrderedDict"), b")", b"R"),  # EMPTY_TUPLE, REDUCE: hooks
            *(b"t", b"R"),  # TUPLE, REDUCE: the call
        ]
    )


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data  # BINUNICODE


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)  # BININT


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


@dataclass(frozen=True, slots=True)
class StepData:
    """What the published trainer reads of one model call."""

    logprobs: list[float]  # [R]
    token_ids: list[int]  # [R]

    def dump(self) -> bytes:
        return dump_tensors(
            {
                "logp": np.array(self.logprobs, np.float32),
                "token_ids": np.array(self.token_ids, np.int64),
            }
        )
