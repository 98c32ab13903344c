"""Blobs: screenshots and trajectories in any fsspec location, written whole or not at all.

    images/<aa>/<sha256>.png             stored once, named by their content
    trajectories/<id>/trajectory.json    one per stored trajectory; its sha256 is in the ledger

Every read is checked against the sha256 that the caller knows. On a local file system a blob is
written under a temporary name and renamed; object stores put whole objects by themselves. A blob
survives the death of any process; nothing is synced, so a power cut may lose the latest ones.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import fsspec
from pydantic import TypeAdapter, ValidationError

from dart_gui.errors import ConfigError, DataError, boundary
from dart_gui.files import write_whole
from dart_gui.types import Trajectory

_ADVICE = "Free some space, or set data.blobs to a folder that can be written"
_TRAJECTORY: TypeAdapter[Trajectory] = TypeAdapter(Trajectory)


def encode_trajectory(trajectory: Trajectory) -> bytes:
    """JSON; numbers read back bit-exact."""
    return _TRAJECTORY.dump_json(trajectory)


def decode_trajectory(data: bytes, what: str) -> Trajectory:
    """Raises ``DataError``, naming ``what``, where the JSON is not a trajectory."""
    try:
        return _TRAJECTORY.validate_json(data)
    except ValidationError as error:
        raise DataError(
            f"{what} is not a trajectory of this version of dart-gui: {error.errors()[0]['msg']}"
        ) from None


class BlobStore:
    """Blobs under the fsspec URL (or plain folder) ``url``."""

    def __init__(self, url: str) -> None:
        try:
            self._fs, self._root = fsspec.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"data.blobs = {url!r} cannot be used: {error}. Give a folder or an fsspec URL"
            ) from error
        self._is_local = "file" in (
            self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        )

    def image_path(self, sha256: str) -> str:
        return f"{self._root}/images/{sha256[:2]}/{sha256}.png"

    def trajectory_path(self, trajectory_id: str) -> str:
        if not trajectory_id or trajectory_id.startswith(".") or "/" in trajectory_id:
            raise DataError(f"the trajectory id {trajectory_id!r} cannot name a folder")
        return f"{self._root}/trajectories/{trajectory_id}/trajectory.json"

    def put_images(self, images: Mapping[str, bytes]) -> None:
        """Store screenshots by their sha256; those that are stored already cost one look.

        Raises:
            DataError: a key is not the sha256 of its bytes, or the location cannot be written.
        """
        for sha256, png in images.items():
            path = self.image_path(sha256)
            if self._exists(path):
                continue
            actual = hashlib.sha256(png).hexdigest()
            if actual != sha256:
                raise DataError(f"a screenshot named {sha256} has the sha256 {actual}")
            self._write(path, png)

    def require_images(self, hashes: Iterable[str]) -> None:
        """Raises ``DataError`` where a screenshot is not stored."""
        for sha256 in hashes:
            if not self._exists(self.image_path(sha256)):
                raise DataError(
                    f"screenshot {sha256} is neither in the blobs at {self._root} nor with the "
                    "trajectory that names it"
                )

    def has_image(self, sha256: str) -> bool:
        return self._exists(self.image_path(sha256))

    def image(self, sha256: str) -> bytes:
        """The PNG with this sha256.

        Raises:
            DataError: it is missing or its bytes have another sha256.
        """
        return self._read(self.image_path(sha256), sha256)

    def put_trajectory(self, trajectory_id: str, data: bytes) -> None:
        self._write(self.trajectory_path(trajectory_id), data)

    def trajectory(self, trajectory_id: str, sha256: str) -> Trajectory:
        """Read a trajectory back and check it against the sha256 that the ledger has.

        Raises:
            DataError: it is missing, damaged, or of another version.
        """
        path = self.trajectory_path(trajectory_id)
        return decode_trajectory(self._read(path, sha256), path)

    def _exists(self, path: str) -> bool:
        if self._is_local:
            return os.path.exists(path)
        with boundary(DataError, f"looking for the blob {path}"):
            return bool(self._fs.exists(path))

    def _read(self, path: str, sha256: str) -> bytes:
        try:
            data = Path(path).read_bytes() if self._is_local else self._cat(path)
        except OSError as error:
            raise DataError(
                f"the blob {path} cannot be read: {error.strerror or error}. The ledger names it: "
                "restore it from a backup, or start a new run"
            ) from error
        actual = hashlib.sha256(data).hexdigest()
        if actual != sha256:
            raise DataError(
                f"the blob {path} is damaged: its sha256 is {actual}, the ledger has {sha256}. "
                "Restore it from a backup, or start a new run"
            )
        return data

    def _cat(self, path: str) -> bytes:
        data: Any = self._fs.cat_file(path)
        return bytes(data)

    def _write(self, path: str, data: bytes) -> None:
        if self._is_local:
            write_whole(Path(path), data, what="the blob", advice=_ADVICE)
            return
        with boundary(DataError, f"writing the blob {path}"):
            self._fs.pipe_file(path, data)
