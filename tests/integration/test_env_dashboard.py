"""The env server's page in a real browser: it asks for the token, shows who holds what, and stops it."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import async_playwright

from dart_gui.env.browser.chromium import find_chromium
from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.providers.fake import Fault
from dart_gui.types import Hover, Point
from tests.integration.test_env_server import ANN, ROOT, lease, serving

pytestmark = pytest.mark.browser
TIMEOUT_MS = 60_000


async def test_the_page(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, faults=(Fault.HANGS, Fault.NONE)) as server,
        server.as_(ANN) as ann,
        async_playwright() as playwright,
    ):
        hung, kept = await lease(ann), await lease(ann)
        for desktop in await server.provider.find():
            client = GuestClient(desktop.address)
            await client.act(Hover(point=Point(1, 1)))  # from here on the first one hangs
            await client.close()
        browser = await playwright.chromium.launch(executable_path=find_chromium().path)
        page = await browser.new_page()
        page.set_default_timeout(TIMEOUT_MS)
        page.on("dialog", lambda dialog: dialog.accept())
        await page.goto(f"{server.url}/dashboard")
        assert not await page.is_visible("#main")
        await page.fill("#token", "wrong-wrong-wrong-wrong")
        await page.press("#token", "Enter")
        await page.wait_for_function("document.querySelector('#error').textContent")
        await page.fill("#token", ROOT.token)
        await page.press("#token", "Enter")

        cards = page.locator("#desktops article")
        await cards.nth(1).wait_for()
        assert "ann" in await cards.nth(1).inner_text()
        async with server.as_(ROOT) as root:
            late = await lease(root)
        # One that does not answer for half a minute does not hold up the page.
        await page.locator("#desktops article", has_text=late[:8]).wait_for(timeout=20_000)
        for lease_id, seen in ((kept, True), (hung, False), (late, True)):
            card = page.locator("#desktops article", has_text=lease_id[:8])
            if seen:  # though the other one does not answer
                image = await card.locator("img").element_handle()
                await page.wait_for_function("image => image.naturalWidth > 0", arg=image)
            await card.get_by_role("button", name="Stop").click()
            await card.wait_for(state="detached")
        assert server.service.status().num_ended["stopped"] == 2
        assert server.service.status().num_ended["released"] == 1  # the administrator's own
        await page.locator("#none").wait_for()
        await browser.close()
