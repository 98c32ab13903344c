"""What every provider of desktops promises, asked of the fake and of real ones alike."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from PIL import Image

from dart_gui.config import EnvConfig
from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.providers import processes
from dart_gui.env.providers.docker import docker_provider
from dart_gui.env.providers.fake import FakeProvider
from dart_gui.env.providers.protocol import Desktop, Provider
from dart_gui.env.providers.xvfb import XvfbProvider
from dart_gui.errors import EnvError
from dart_gui.types import Click, Point

WIDTH, HEIGHT = 400, 300


def make(kind: str, root: Path) -> Provider:
    if kind == "fake":
        return FakeProvider(root, width=WIDTH, height=HEIGHT)
    if kind == "docker":
        config = EnvConfig(
            docker_host=os.environ["DART_DOCKER_HOST"],
            docker_image=os.environ["DART_DOCKER_IMAGE"],
            desktop_width=WIDTH,
            desktop_height=HEIGHT,
        )
        return docker_provider(config, root)
    return XvfbProvider(root, width=WIDTH, height=HEIGHT)


KINDS = [
    "fake",
    pytest.param("xvfb", marks=pytest.mark.desktop),
    pytest.param("docker", marks=pytest.mark.docker),
]


@pytest.fixture(params=KINDS)
async def provider(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Provider]:
    made = make(request.param, tmp_path_factory.mktemp("d"))
    await made.start()
    yield made
    for desktop in await made.find():
        await made.destroy(desktop.desktop_id)
    await made.close()


@asynccontextmanager
async def talk(desktop: Desktop) -> AsyncIterator[GuestClient]:
    client = GuestClient(desktop.address)
    try:
        yield client
    finally:
        await client.close()


async def test_a_desktop_works_from_the_moment_that_it_is_made(provider: Provider) -> None:
    desktop = await provider.create("one")
    assert desktop.desktop_id == "one"
    assert desktop.boot_s >= 0
    async with talk(desktop) as client:
        assert (await client.health())["width"] == WIDTH
        image = Image.open(io.BytesIO((await client.screenshot()).png))
        assert image.size == (WIDTH, HEIGHT)
        assert await client.act(Click(point=Point(37, 41))) is None
        assert await client.cursor_position() == (37, 41)
        done = await client.execute("echo out; exit 3", shell=True)
        assert (done.output, done.returncode) == ("out\n", 3)
        await client.write_file("dir/file", b"\0content")
        assert await client.read_file("dir/file") == b"\0content"


async def test_two_desktops_know_nothing_of_each_other(provider: Provider) -> None:
    desktops = await asyncio.gather(provider.create("one"), provider.create("two"))
    async with talk(desktops[0]) as one, talk(desktops[1]) as two:
        await one.write_file("secret", b"1")
        await one.act(Click(point=Point(5, 6)))
        assert await two.read_file("secret") is None
        assert await two.cursor_position() != (5, 6)
        await provider.destroy("one")
        assert (await two.execute("true")).returncode == 0
        with pytest.raises(EnvError):
            await one.health()
    assert [desktop.desktop_id for desktop in await provider.find()] == ["two"]


async def test_a_desktop_starts_clean_each_time(provider: Provider) -> None:
    first = await provider.create("one")
    async with talk(first) as client:
        await client.write_file("left-behind", b"1")
        clean = await client.execute("ls -A | grep -v left-behind", shell=True)
    await provider.destroy("one")
    second = await provider.create("two")
    async with talk(second) as client:
        assert await client.read_file("left-behind") is None
        assert (await client.execute("ls -A", shell=True)).output == clean.output


async def test_destroy_is_idempotent_and_leaves_nothing(provider: Provider) -> None:
    desktop = await provider.create("one")
    for _ in range(3):
        await provider.destroy("one")
    await provider.destroy("never")
    assert await provider.find() == []
    assert await provider.usage("one") is None
    async with talk(desktop) as client:
        with pytest.raises(EnvError):
            await client.health()
    assert desktop.address.socket is None or not desktop.address.socket.exists()


async def test_desktops_are_found(provider: Provider) -> None:
    assert await provider.find() == []
    made = [await provider.create(name) for name in ("one", "two")]
    found = {desktop.desktop_id: desktop for desktop in await provider.find()}
    assert set(found) == {"one", "two"}
    assert found["two"].address == made[1].address
    async with talk(found["two"]) as client:
        assert (await client.execute("true")).returncode == 0


async def die(provider: Provider, desktop_id: str) -> None:
    """As of its own: what it ran is gone, and nobody told the provider."""
    if isinstance(provider, FakeProvider):
        await provider.die(desktop_id)
    elif isinstance(provider, XvfbProvider):
        assert processes.kill(provider._mark(desktop_id))
        async with asyncio.timeout(60):
            while processes.marked(provider._mark(desktop_id)):
                await asyncio.sleep(0.01)
    else:
        (container,) = provider._own(desktop_id)  # type: ignore[attr-defined]
        await asyncio.to_thread(container.kill)


async def test_what_ended_is_found_so_and_what_boots_is_not_found(provider: Provider) -> None:
    """Looked for all the time until it is ready, beside one that is there until it is destroyed."""
    await provider.create("dead")
    await die(provider, "dead")
    booting = asyncio.create_task(provider.create("one"))
    while not booting.done():
        found = asyncio.create_task(provider.find())
        await asyncio.wait({booting, found}, return_when=asyncio.FIRST_COMPLETED)
        for desktop in await found:
            assert desktop.is_running == (desktop.desktop_id == "one")
            assert desktop.desktop_id == "dead" or booting.done()
        await asyncio.sleep(0)
    found_now = [(one.desktop_id, one.is_running) for one in await provider.find()]
    assert found_now == [("dead", False), ("one", True)]
    async with talk(await booting) as client:
        assert (await client.execute("true")).returncode == 0
    await provider.destroy("dead")
    assert [one.desktop_id for one in await provider.find()] == ["one"]


async def test_usage_is_measured(provider: Provider) -> None:
    await provider.create("one")
    usage = await provider.usage("one")
    assert usage is not None
    assert usage.memory_bytes > 0
    assert usage.cpu_s > 0
    assert usage.num_processes >= 1


async def test_one_name_is_one_desktop(provider: Provider) -> None:
    desktop = await provider.create("one")
    with pytest.raises(FileExistsError):
        await provider.create("one")
    async with talk(desktop) as client:
        assert (await client.execute("true")).returncode == 0
