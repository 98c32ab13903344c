import base64
import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dart_gui.rollout.images import check_png, decode_data_url, image_hash


def png(width: int = 4, height: int = 3) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 60)).save(buffer, "png")
    return buffer.getvalue()


PNG = png()


def test_a_png_of_pillow_is_taken():
    check_png(PNG)


def test_the_hash_is_the_sha256():
    assert image_hash(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@settings(deadline=None)
@given(st.integers(0, len(PNG) - 1))
def test_a_png_that_is_cut_anywhere_is_refused(length):
    with pytest.raises(ValueError, match="PNG"):
        check_png(PNG[:length])


@settings(deadline=None)
@given(st.integers(0, len(PNG) - 1), st.integers(1, 255))
def test_a_png_with_one_wrong_byte_is_refused(at, change):
    broken = bytearray(PNG)
    broken[at] ^= change
    with pytest.raises(ValueError, match="PNG"):
        check_png(bytes(broken))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_other_bytes_are_refused(data):
    with pytest.raises(ValueError, match="PNG"):
        check_png(data)


def test_a_png_that_would_decode_to_gigabytes_is_refused():
    body = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    with pytest.raises(ValueError, match="100000x100000"):
        check_png(PNG[:8] + header + PNG[33:])


def test_data_url_gives_the_bytes():
    assert decode_data_url("data:image/png;base64," + base64.b64encode(PNG).decode()) == PNG


@pytest.mark.parametrize(
    "url",
    ["data:image/jpeg;base64,AAAA", "data:image/png,a", "data:image/png;base64,A?", "data:"],
)
def test_other_data_urls_are_refused(url):
    with pytest.raises(ValueError, match="data URL"):
        decode_data_url(url)
