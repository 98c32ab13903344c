"""The cache of downloads against a server of our own."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from dart_gui.cli import main
from dart_gui.env.osworld.downloads import Downloads
from dart_gui.env.osworld.mirror import mirror
from dart_gui.errors import EnvError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
HALF = len(CONTENT) // 2


class Stand:
    """Serves ``/same`` and ``/copy`` with equal content, breaks ``/cut`` off once, has no ``/gone``."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.url = ""
        self.tag = '"one"'

    async def answer(self, request: web.Request) -> web.StreamResponse:
        wanted = request.headers.get("Range")
        self.requests.append((request.path, wanted))
        if request.path == "/gone":
            return web.Response(status=404)
        headers = {"ETag": self.tag}
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if first and request.headers.get("If-Range") != self.tag:
            first = 0
        if request.path == "/cut" and not first and len(self.requests) == 1:
            response = web.StreamResponse(headers=headers)
            response.content_length = len(CONTENT)
            await response.prepare(request)
            await response.write(CONTENT[:HALF])
            assert request.transport is not None
            request.transport.close()
            return response
        return web.Response(status=206 if first else 200, body=CONTENT[first:], headers=headers)


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    made = Stand()
    app = web.Application()
    app.router.add_get("/{path:.*}", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


async def test_a_file_is_fetched_once_and_kept_by_content(stand: Stand, tmp_path: Path) -> None:
    downloads = Downloads(tmp_path)
    one = await downloads.get(f"{stand.url}/same")
    assert one.path.read_bytes() == CONTENT
    assert one.path.name == one.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert (await downloads.get(f"{stand.url}/same")).path == one.path
    assert len(stand.requests) == 1
    assert (await downloads.get(f"{stand.url}/copy")).path == one.path
    assert len(list((tmp_path / "objects").glob("*/*"))) == 1


async def test_a_download_that_broke_off_goes_on(stand: Stand, tmp_path: Path) -> None:
    cached = await Downloads(tmp_path).get(f"{stand.url}/cut")
    assert cached.path.read_bytes() == CONTENT
    assert [wanted is None for _, wanted in stand.requests] == [True, False]


@pytest.mark.parametrize("tag", ['"two"', 'W/"one"'])
async def test_another_file_is_not_glued_to_half_of_the_first(
    stand: Stand, tmp_path: Path, tag: str
) -> None:
    url = f"{stand.url}/same"
    downloads = Downloads(tmp_path)
    partial = tmp_path / "partial" / hashlib.sha256(url.encode()).hexdigest()
    partial.parent.mkdir()
    partial.write_bytes(b"old" * 100)
    partial.with_suffix(".etag").write_text('"one"')
    stand.tag = tag
    assert (await downloads.get(url)).path.read_bytes() == CONTENT


async def test_a_file_that_shrank_is_fetched_again(stand: Stand, tmp_path: Path) -> None:
    downloads = Downloads(tmp_path)
    cached = await downloads.get(f"{stand.url}/same")
    cached.path.write_bytes(b"cut")
    assert downloads.find(cached.url) is None
    assert (await downloads.get(cached.url)).path.read_bytes() == CONTENT


async def test_offline_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="dart-gui osworld mirror TASKS --cache"):
        await Downloads(tmp_path, offline=True).get("http://127.0.0.1:1/x")


async def test_without_a_network_too(stand: Stand, tmp_path: Path) -> None:
    with pytest.raises(EnvError, match=r"404.*dart-gui osworld mirror"):
        await Downloads(tmp_path).get(f"{stand.url}/gone")


async def test_a_mirror_goes_on_past_what_fails(stand: Stand, tmp_path: Path) -> None:
    urls = [f"{stand.url}/{name}" for name in ("same", "gone", "copy")]
    done = await mirror(urls, Downloads(tmp_path), jobs=2)
    assert sorted(done.files) == sorted([urls[0], urls[2]])
    assert list(done.failures) == [urls[1]]
    assert (done.num_fetched, done.num_bytes) == (2, len(CONTENT))
    again = await mirror(urls, Downloads(tmp_path), jobs=2)
    assert again.num_fetched == 0


async def test_the_command(
    stand: Stand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tasks" / "examples" / "os" / "a.json"
    path.parent.mkdir(parents=True)
    files = [{"url": f"{stand.url}/same", "path": "/x"}]
    step = {"type": "download", "parameters": {"files": files}}
    task = {"instruction": "x", "config": [step], "evaluator": {"func": "infeasible"}}
    path.write_text(json.dumps(task))
    argv = ["osworld", "mirror", str(tmp_path / "tasks"), "--cache", str(tmp_path / "cache")]
    assert await asyncio.to_thread(main, argv) == 0
    assert "1 fetched now, 0 were there" in capsys.readouterr().out
    assert await asyncio.to_thread(main, argv) == 0
    assert "0 fetched now, 1 were there" in capsys.readouterr().out
    files[0]["url"] = f"{stand.url}/gone"
    path.write_text(json.dumps(task))
    assert await asyncio.to_thread(main, argv) == 1
