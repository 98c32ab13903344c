"""Routes of the guest API about files."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from dart_gui.env.desktop.guest import GUEST, Guest, GuestError, read_object

DOWNLOAD_TIMEOUT_S = 300
WALLPAPER = ".wallpaper"
_CHUNK = 1 << 20


def add_routes(app: web.Application) -> None:
    app.router.add_post("/file", _file)
    app.router.add_post("/list_directory", _list_directory)
    app.router.add_post("/desktop_path", _desktop_path)
    app.router.add_post("/wallpaper", _wallpaper)
    app.router.add_post("/setup/upload", _upload)
    app.router.add_post("/setup/download_file", _download)
    app.router.add_post("/setup/change_wallpaper", _change_wallpaper)


def expand(guest: Guest, path: Any) -> Path:
    """A path of a request: ``~`` and variables expanded, relative ones from the home.

    Raises:
        GuestError: 400, there is none.
    """
    if not isinstance(path, str) or not path:
        raise GuestError(400, "a path is required")
    return guest.home / os.path.expandvars(os.path.expanduser(path))


async def _file(request: web.Request) -> web.StreamResponse:
    path = expand(request.app[GUEST], (await request.post()).get("file_path"))
    if not path.is_file():
        raise GuestError(404, f"there is no file {path}")
    return web.FileResponse(path)


async def _list_directory(request: web.Request) -> web.Response:
    path = expand(request.app[GUEST], (await read_object(request)).get("path"))
    if not path.is_dir():
        raise GuestError(400, f"there is no directory {path}")
    return web.json_response({"directory_tree": await asyncio.to_thread(_tree, path)})


def _tree(path: Path) -> dict[str, Any]:
    if not path.is_dir() or path.is_symlink():
        return {"type": "file", "name": path.name}
    children = [_tree(child) for child in sorted(path.iterdir())]
    return {"type": "directory", "name": path.name, "children": children}


async def _desktop_path(request: web.Request) -> web.Response:
    return web.json_response({"desktop_path": str(request.app[GUEST].home / "Desktop")})


async def _upload(request: web.Request) -> web.Response:
    """Multipart: ``file_path`` first, then ``file_data``, which is written as it arrives."""
    guest = request.app[GUEST]
    path: Path | None = None
    async for part in await request.multipart():
        if not isinstance(part, aiohttp.BodyPartReader):
            raise GuestError(400, "a part of the form is itself multipart")
        if part.name == "file_path":
            path = expand(guest, await part.text())
        elif part.name == "file_data":
            if path is None:
                raise GuestError(400, "file_path must come before file_data")
            await _write(path, part)
            return web.Response(text="File Uploaded")
    raise GuestError(400, "the form must have file_path and file_data")


async def _write(path: Path, part: aiohttp.BodyPartReader) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            while chunk := await part.read_chunk(_CHUNK):
                file.write(part.decode(chunk))
    except OSError as error:
        raise GuestError(500, f"cannot write {path}: {error}") from None


async def _download(request: web.Request) -> web.Response:
    guest = request.app[GUEST]
    body = await read_object(request)
    url, path = body.get("url"), expand(guest, body.get("path"))
    if not isinstance(url, str) or not url:
        raise GuestError(400, "a url is required")
    path.parent.mkdir(parents=True, exist_ok=True)
    timeout = aiohttp.ClientTimeout(total=DOWNLOAD_TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
            response.raise_for_status()
            with path.open("wb") as file:
                async for chunk in response.content.iter_chunked(_CHUNK):
                    file.write(chunk)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise GuestError(500, f"cannot download {url}: {error}") from None
    return web.Response(text="File downloaded successfully")


async def _change_wallpaper(request: web.Request) -> web.Response:
    """Keeps the picture as the wallpaper that ``/wallpaper`` returns.

    The plain X desktop draws none: it stays in the background colour.
    """
    guest = request.app[GUEST]
    path = expand(guest, (await read_object(request)).get("path"))
    if not path.is_file():
        raise GuestError(404, f"there is no file {path}")
    await asyncio.to_thread(lambda: (guest.home / WALLPAPER).write_bytes(path.read_bytes()))
    return web.Response(text="Wallpaper changed successfully")


async def _wallpaper(request: web.Request) -> web.StreamResponse:
    path = request.app[GUEST].home / WALLPAPER
    if not path.is_file():
        raise GuestError(404, "no wallpaper was set")
    return web.FileResponse(path)
