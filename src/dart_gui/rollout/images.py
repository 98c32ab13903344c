"""Screenshots by the sha256 of their PNG: a cache bounded by bytes, and checks of what comes in."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HASH = re.compile(r"[0-9a-f]{64}")
_DATA_URL = re.compile(r"data:image/png;base64,", re.IGNORECASE)
MAX_IMAGE_BYTES = 32 * 2**20
MAX_IMAGE_PIXELS = 64 * 2**20


def image_hash(png: bytes) -> str:
    return hashlib.sha256(png).hexdigest()


def is_image_hash(text: str) -> bool:
    return _HASH.fullmatch(text) is not None


def check_png(data: bytes) -> None:
    """Walk the chunks: lengths, checksums, IHDR first, IEND last. Does not decode the pixels.

    Raises:
        ValueError: says in what way ``data`` is not a PNG.
    """
    if not data.startswith(_SIGNATURE):
        raise ValueError("not a PNG: the signature is missing")
    at, first = len(_SIGNATURE), True
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body_end = at + 8 + length
        if body_end + 4 > len(data):
            break
        checksum = zlib.crc32(memoryview(data)[at + 4 : body_end])
        if checksum != struct.unpack_from(">I", data, body_end)[0]:
            raise ValueError(f"a corrupt PNG: the checksum of chunk {kind!r} is wrong")
        if first:
            _check_header(kind, data[at + 8 : body_end])
        if kind == b"IEND":
            return
        at, first = body_end + 4, False
    raise ValueError("a PNG that is cut off: the IEND chunk is missing")


def _check_header(kind: bytes, body: bytes) -> None:
    if kind != b"IHDR" or len(body) != 13:
        raise ValueError("a corrupt PNG: it does not begin with an IHDR chunk")
    width, height = struct.unpack_from(">II", body)
    # a few bytes of PNG can decode to gigabytes, in a worker that others share
    if not 0 < width * height <= MAX_IMAGE_PIXELS:
        raise ValueError(f"a PNG of {width}x{height} pixels; at most {MAX_IMAGE_PIXELS} are taken")


def decode_data_url(url: str) -> bytes:
    """The bytes of ``data:image/png;base64,...``.

    Raises:
        ValueError: another media type or encoding, or broken base64.
    """
    match = _DATA_URL.match(url)
    if match is None:
        raise ValueError(f"a data URL must begin with 'data:image/png;base64,', got {url[:40]!r}")
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except binascii.Error as error:
        raise ValueError(f"the base64 of a data URL is broken: {error}") from None
