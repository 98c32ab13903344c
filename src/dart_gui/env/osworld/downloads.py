"""Files that tasks download, kept by content, so that no episode waits for a network.

``objects/ab/<sha256>`` are the files, ``urls/<sha256 of the URL>.json`` say which one a URL gave, and
``partial/`` what is still under way. Every file appears whole, by a rename.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from dart_gui.errors import EnvError
from dart_gui.files import write_whole

CONNECT_S = 30.0
STALL_S = 60.0
"""Without a byte: the server has stopped, and the next try goes on from there."""
TRIES = 3
_CHUNK = 1 << 18
OnBytes = Callable[[int], None]


def _ignore(_: int) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    url: str
    sha256: str
    size: int
    path: Path


class Downloads:
    """A cache in ``folder``; several processes may share it. ``offline`` refuses what is not there."""

    def __init__(self, folder: Path, *, offline: bool = False) -> None:
        self.folder = folder
        self._offline = offline

    def find(self, url: str) -> Cached | None:
        """What ``url`` gave; None where it was not downloaded, or its file is not whole any more."""
        try:
            entry = json.loads(self._entry(url).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        path = self._object(entry["sha256"])
        if not path.is_file() or path.stat().st_size != entry["size"]:
            return None
        return Cached(url=url, sha256=entry["sha256"], size=entry["size"], path=path)

    async def get(self, url: str, *, on_bytes: OnBytes = _ignore) -> Cached:
        """The file of ``url``, downloaded if need be; ``on_bytes`` hears of each piece.

        Raises:
            EnvError: it is not cached and cannot be downloaded.
        """
        if found := self.find(url):
            return found
        if self._offline:
            raise EnvError(
                f"{url} is not in the cache {self.folder}, and env.osworld_offline is set: fill the "
                f"cache first, with `dart-gui osworld mirror TASKS --cache {self.folder}`"
            )
        async with self._only_one(url):
            return self.find(url) or await self._download(url, on_bytes)

    async def _download(self, url: str, on_bytes: OnBytes) -> Cached:
        errors: list[str] = []
        for _ in range(TRIES):
            try:
                await self._receive(url, on_bytes)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                errors.append(f"{type(error).__name__}: {error}")
                continue
            return await asyncio.to_thread(self._keep, url)
        raise EnvError(
            f"{url} cannot be downloaded ({errors[-1]}). Where there is a network, fill the cache with "
            f"`dart-gui osworld mirror TASKS --cache {self.folder}`; what is there is not fetched again"
        )

    async def _receive(self, url: str, on_bytes: OnBytes) -> None:
        """Goes on from what is there, where the server still has the same file."""
        partial, tag = self._partial(url), self._partial(url).with_suffix(".etag")
        have = partial.stat().st_size if partial.exists() and tag.exists() else 0
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": tag.read_text(encoding="utf-8")}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=STALL_S)
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.get(url, headers=headers) as response,
        ):
            if response.status == 416:  # all of it was there, or another file is
                partial.unlink()
                raise ValueError(f"the server has nothing after byte {have}")
            response.raise_for_status()
            resumes = response.status == 206
            # A weak tag does not promise the same bytes, so nothing is resumed by it.
            etag = response.headers.get("ETag", "")
            if etag and not etag.startswith("W/"):
                tag.write_text(etag, encoding="utf-8")
            else:
                tag.unlink(missing_ok=True)
            with partial.open("ab" if resumes else "wb") as file:
                async for chunk in response.content.iter_chunked(_CHUNK):
                    file.write(chunk)
                    on_bytes(len(chunk))

    def _keep(self, url: str) -> Cached:
        partial = self._partial(url)
        digest = hashlib.sha256()
        with partial.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            os.fsync(file.fileno())
        sha256, size = digest.hexdigest(), partial.stat().st_size
        path = self._object(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(path)
        partial.with_suffix(".etag").unlink(missing_ok=True)
        write_whole(self._entry(url), json.dumps({"url": url, "sha256": sha256, "size": size}))
        return Cached(url=url, sha256=sha256, size=size, path=path)

    @asynccontextmanager
    async def _only_one(self, url: str) -> AsyncIterator[None]:
        """Of all processes: two that write one partial file would mix it up."""
        partial = self._partial(url)
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.with_suffix(".lock").open("w") as lock:
            await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
            yield

    def _object(self, sha256: str) -> Path:
        return self.folder / "objects" / sha256[:2] / sha256

    def _entry(self, url: str) -> Path:
        return self.folder / "urls" / f"{_key(url)}.json"

    def _partial(self, url: str) -> Path:
        return self.folder / "partial" / _key(url)


def _key(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()
