"""Ports of programs in a desktop, from outside: through our guest server, an env server, and the door of
an evaluation."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from dart_gui.env.desktop.address import Address
from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.ports import CHROME, VLC
from dart_gui.env.osworld.door import Door
from dart_gui.env.osworld.downloads import Downloads
from dart_gui.env.osworld.evaluate import EvaluatorSettings, evaluate
from dart_gui.env.osworld.tasks import OsworldTask, parse
from dart_gui.env.providers.fake import FakeProvider
from dart_gui.env.providers.protocol import Desktop
from dart_gui.env.providers.xvfb import XvfbProvider
from dart_gui.env.server.client import ServerSource
from dart_gui.env.server.forward import Forwarder
from tests.integration.test_env_server import ANN, serving

pytestmark = [pytest.mark.desktop, pytest.mark.asyncio(loop_scope="module")]
CHROMIUM = "/usr/bin/chromium-headless-shell"
# Runs in the desktop: what VLC's interface looks like from outside.
PLAYER = """
import base64, http.server
class Player(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ours = "Basic " + base64.b64encode(b":password").decode()
        known = self.headers.get("Authorization") == ours
        body = f"<root>{self.path}</root>".encode() if known else b""
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", 8080), Player).serve_forever()
"""


@pytest.fixture(scope="module")
async def desktop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Address]:
    provider = XvfbProvider(tmp_path_factory.mktemp("d"), width=640, height=400)
    await provider.start()
    yield (await provider.create("shared")).address
    await provider.destroy("shared")


@pytest.fixture(scope="module")
async def client(desktop: Address) -> AsyncIterator[GuestClient]:
    made = GuestClient(desktop)
    yield made
    await made.close()


@pytest.fixture(scope="module")
async def player(client: GuestClient) -> None:
    await client.launch(["python3", "-c", PLAYER])
    while (await client.relay_port(VLC, "GET", "/", headers={})).status == 502:
        await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
async def chrome(client: GuestClient) -> None:
    await start_chrome(client, "<title>Shown</title><p>a page of the desktop")


async def start_chrome(client: GuestClient, page: str) -> None:
    if not os.path.exists(CHROMIUM):
        pytest.skip(f"there is no {CHROMIUM}")
    await client.write_file("page.html", page.encode())
    await client.launch(
        [
            *(CHROMIUM, "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *(f"--remote-debugging-port={CHROME}", "file:///home/user/page.html"),
        ]
    )
    while (await client.relay_port(CHROME, "GET", "/json/version", headers={})).status == 502:
        await asyncio.sleep(0.1)


async def get(url: str, **kwargs: object) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url, **kwargs) as answer:  # type: ignore[arg-type]
        return answer.status, await answer.text()


async def test_a_program_is_asked_with_its_own_password(client: GuestClient, player: None) -> None:
    async with Door(client, answer_s=30) as door:
        url = f"http://127.0.0.1:{door.beside(VLC)}/requests/status.xml?a=b"
        known = aiohttp.BasicAuth("", "password")
        assert await get(url, auth=known) == (200, "<root>/requests/status.xml?a=b</root>")
        assert (await get(url))[0] == 401
        wrong = url.replace(door.beside(VLC).split("/")[1], "guessed")
        assert (await get(wrong, auth=known))[0] == 401
        assert door.failure is None


@asynccontextmanager
async def forwarded(address: Address, port: int | None, *, alive: list[bool]) -> AsyncIterator[str]:
    forwarder = Forwarder(address, port, admit="127.0.0.1", touch=lambda: alive[0])
    number = await forwarder.start("127.0.0.1")
    try:
        yield f"http://127.0.0.1:{number}"
    finally:
        await forwarder.close()


async def test_a_port_of_ones_own_leads_to_a_program_of_the_desktop(
    desktop: Address, player: None
) -> None:
    """As published clients ask: without our route, and with the program's own password."""
    known, alive = aiohttp.BasicAuth("", "password"), [True]
    async with forwarded(desktop, VLC, alive=alive) as url:
        assert await get(f"{url}/requests/status.xml", auth=known) == (
            200,
            "<root>/requests/status.xml</root>",
        )
        assert (await get(url))[0] == 401
        alive[0] = False
        with pytest.raises(aiohttp.ClientError):
            await get(url, auth=known)


async def test_a_port_where_nothing_listens_closes(desktop: Address) -> None:
    for port in (CHROME, 22):  # no program yet; not for the outside
        async with forwarded(desktop, port, alive=[True]) as url:
            with pytest.raises(aiohttp.ClientError):
                await get(url)


async def test_a_desktop_that_is_named_by_a_url(desktop: Address, player: None) -> None:
    """As a container is: both its guest server and its published ports."""
    async with (
        forwarded(desktop, None, alive=[True]) as guest,
        forwarded(desktop, VLC, alive=[True]) as published,
    ):
        for address in (Address(url=guest), Address(url=guest, ports={VLC: published})):
            async with forwarded(address, None, alive=[True]) as url:
                assert (await get(f"{url}/platform"))[0] == 200
            async with forwarded(address, VLC, alive=[True]) as url:
                assert (await get(url, auth=aiohttp.BasicAuth("", "password")))[0] == 200


async def test_a_lease_leads_to_a_published_port(
    desktop: Address, player: None, tmp_path: Path
) -> None:
    """Of a guest that has no route to it, such as OSWorld's."""

    class Published(FakeProvider):
        async def create(self, desktop_id: str) -> Desktop:
            ports = {VLC: published, CHROME: "http://127.0.0.1:1"}
            made = await super().create(desktop_id)
            return replace(made, address=Address(url=guest, ports=ports))

    async with (
        forwarded(desktop, None, alive=[True]) as guest,
        forwarded(desktop, VLC, alive=[True]) as published,
    ):
        provider = Published(tmp_path / "d")
        async with serving(tmp_path, provider=provider) as running:
            source = ServerSource([running.url], ANN.token)
            await source.start()
            client = GuestClient((await source.take()).address)
            known = {"Authorization": aiohttp.BasicAuth("", "password").encode()}
            answer = await client.relay_port(VLC, "GET", "/a?b=c", headers=known)
            assert (answer.status, answer.body, answer.is_port) == (
                200,
                b"<root>/a?b=c</root>",
                True,
            )
            answer = await client.relay_port(CHROME, "GET", "/json", headers={})
            assert (answer.status, answer.is_port) == (502, True)  # no fault of the desktop
            await client.close()
            await source.close()


async def test_a_program_that_does_not_run_is_no_failure_of_the_desktop(
    client: GuestClient,
) -> None:
    gone = "http://127.0.0.1:1"
    closed = GuestClient(Address(url=gone, ports={VLC: gone}))  # as of a container
    for asked, port in ((client, 9222), (closed, VLC)):
        async with Door(asked, answer_s=30) as door:
            status, _ = await get(f"http://127.0.0.1:{door.beside(port)}/json/version/")
            assert (status, door.failure) == (502, None)
    await closed.close()


async def test_no_other_port_is_reached(client: GuestClient) -> None:
    async with Door(client, answer_s=30) as door:
        assert (await get(f"http://127.0.0.1:{door.beside(22)}/"))[0] == 403
        assert door.failure == "this desktop does not hand out its port 22"


@pytest.mark.browser
@pytest.mark.parametrize("way", ["guest", "env server"])
async def test_chrome_is_driven_through_the_door(
    client: GuestClient, chrome: None, tmp_path_factory: pytest.TempPathFactory, way: str
) -> None:
    if way == "guest":
        assert await titles(client) == ["Shown"]
        return
    folder = tmp_path_factory.mktemp("e")
    provider = XvfbProvider(folder / "d", width=320, height=200)
    async with serving(folder, provider=provider) as running:  # type: ignore[arg-type]
        source = ServerSource([running.url], ANN.token)
        await source.start()
        leased = await source.take()
        through = GuestClient(leased.address)
        try:
            await start_chrome(through, "<title>Leased</title>")
            assert await titles(through) == ["Leased"]
        finally:
            await through.close()
            await source.close()


@pytest.mark.browser
async def test_chrome_is_driven_by_its_forwarded_port(desktop: Address, chrome: None) -> None:
    from playwright.async_api import async_playwright

    async with forwarded(desktop, CHROME, alive=[True]) as url, async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(url)
        pages = [page for context in browser.contexts for page in context.pages]
        assert [await page.title() for page in pages] == ["Shown"]
        assert await pages[0].evaluate("'x'.repeat(5_000_000).length") == 5_000_000
        await browser.close()


async def titles(client: GuestClient) -> list[str]:
    """What OSWorld's getters do."""
    from playwright.async_api import async_playwright

    async with Door(client, answer_s=30) as door, async_playwright() as playwright:
        browser = await playwright.chromium.connect_over_cdp(
            f"http://{door.host}:{door.beside(CHROME)}"
        )
        pages = [page for context in browser.contexts for page in context.pages]
        assert await pages[0].evaluate("'x'.repeat(5_000_000).length") == 5_000_000
        found = [await page.title() for page in pages]
        await browser.close()
        assert door.failure is None
        return found


def tabs_task(url: str) -> OsworldTask:
    evaluator = {
        "func": "is_expected_tabs",
        "result": {"type": "open_tabs_info"},
        "expected": {"type": "rule", "rules": {"type": "url", "urls": [url]}},
    }
    return parse({"instruction": "i", "evaluator": evaluator}, task_id="osworld/chrome/a")


@pytest.mark.osworld
@pytest.mark.slow
@pytest.mark.parametrize(("page", "reward"), [("page.html", 1.0), ("other.html", 0.0)])
async def test_osworlds_own_getter_sees_the_tabs(
    client: GuestClient, chrome: None, tmp_path: Path, page: str, reward: float
) -> None:
    python = os.environ.get("DART_OSWORLD")
    if not python:
        pytest.skip("OSWorld's metrics are not installed: `make test-osworld` does so")
    settings = EvaluatorSettings(python=Path(python), timeout_s=240, memory_mb=4096)
    found = await evaluate(
        client,
        tabs_task(f"file:///home/user/{page}"),
        scratch=tmp_path,
        downloads=Downloads(tmp_path / "cache", offline=True),
        settings=settings,
    )
    assert found == reward


@pytest.mark.osworld
@pytest.mark.slow
async def test_osworlds_own_getter_asks_the_player(
    client: GuestClient, player: None, tmp_path: Path
) -> None:
    python = os.environ.get("DART_OSWORLD")
    if not python:
        pytest.skip("OSWorld's metrics are not installed: `make test-osworld` does so")
    evaluator = {
        "func": "exact_match",
        "result": {"type": "vlc_playing_info", "dest": "status.xml"},
        "expected": {"type": "rule", "rules": {"expected": str(tmp_path / "status.xml")}},
    }
    found = await evaluate(
        client,
        parse({"instruction": "i", "evaluator": evaluator}, task_id="osworld/vlc/a"),
        scratch=tmp_path,
        downloads=Downloads(tmp_path / "cache", offline=True),
        settings=EvaluatorSettings(python=Path(python), timeout_s=240, memory_mb=4096),
    )
    assert found == 1.0
    assert (tmp_path / "status.xml").read_text() == "<root>/requests/status.xml</root>"
