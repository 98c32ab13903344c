"""OSWorld's own getters on programs of the full desktop image: a Chromium with its window, and VLC."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.ports import CHROME
from dart_gui.env.osworld import chrome
from dart_gui.env.osworld.door import Door
from dart_gui.env.osworld.downloads import Downloads
from dart_gui.env.osworld.evaluate import EvaluatorSettings, evaluate
from dart_gui.env.osworld.tasks import parse
from tests.container_desktop import container_desktop

pytestmark = [pytest.mark.docker(apps="all"), pytest.mark.osworld, pytest.mark.slow]

MADE = Path(__file__).resolve().parents[2] / ".venv-osworld" / "bin" / "python"
PYTHON = Path(os.environ.get("DART_OSWORLD") or MADE)
PAGE = b"<title>Shop</title>Lamp<script>document.cookie = 'basket=3; max-age=9999'</script>"
SHOP, OTHER = "http://localhost:8000/shop.html", "http://localhost:8000/other.html"
WEB_S, ANSWER_S = 60.0, 120.0


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[GuestClient]:
    if not PYTHON.is_file():
        pytest.skip("OSWorld's getters are not installed: `make test-osworld` does so")
    async with container_desktop(tmp_path) as made:
        yield made


Check = tuple[str, dict[str, Any], Any]  # metric, getter, rules


async def reward(client: GuestClient, tmp_path: Path, conj: str, *checks: Check) -> float:
    evaluator = {
        "conj": conj,
        "func": [func for func, _, _ in checks],
        "result": [result for _, result, _ in checks],
        "expected": [{"type": "rule", "rules": rules} for _, _, rules in checks],
    }
    task = parse({"instruction": "x", "evaluator": evaluator}, task_id="osworld/chrome/a")
    return await evaluate(
        client,
        task,
        scratch=tmp_path,
        downloads=Downloads(tmp_path / "cache", offline=True),
        settings=EvaluatorSettings(python=PYTHON, timeout_s=ANSWER_S, memory_mb=8192),
    )


def is_on_page(item: str) -> Check:
    return ("is_added_to_steam_cart", {"type": "page_info", "url": SHOP}, {"items": [item]})


def has_tabs(*urls: str) -> Check:
    return ("is_expected_tabs", {"type": "open_tabs_info"}, {"type": "url", "urls": urls})


def is_set(getter: str, value: str) -> Check:
    return ("exact_match", {"type": getter}, {"expected": value})


FAVORITES: Check = (
    "is_expected_bookmarks",
    {"type": "bookmarks"},
    {"type": "bookmark_bar_folders_names", "names": ["Favorites"]},
)
CHANGED = (
    is_set("enable_do_not_track", "true"),
    is_set("default_search_engine", "Microsoft Bing"),
    FAVORITES,
)


async def change_settings(client: GuestClient) -> None:
    """By what the pages of the settings call themselves."""
    from playwright.async_api import async_playwright

    async with Door(client, answer_s=ANSWER_S) as door, async_playwright() as playwright:
        address = f"http://127.0.0.1:{door.beside(CHROME)}"
        browser = await playwright.chromium.connect_over_cdp(address)
        page = await browser.contexts[0].new_page()
        await page.goto("chrome://settings/searchEngines")
        await page.evaluate(
            """async () => {
                const settings = await import('chrome://settings/settings.js');
                const proxy = settings.SearchEnginesBrowserProxyImpl.getInstance();
                const engines = (await proxy.getSearchEnginesList()).defaults;
                proxy.setDefaultSearchEngine(engines.find(e => e.name.includes('Bing')).id, 0, false);
                await new Promise(
                    done => chrome.settingsPrivate.setPref('enable_do_not_track', true, '', done));
            }"""
        )
        await page.goto("chrome://bookmarks")
        folder = "{parentId: '1', title: 'Favorites'}"
        await page.evaluate(f"new Promise(done => chrome.bookmarks.create({folder}, done))")
        await page.close()
        await browser.close()


async def test_chromes_getters_on_a_chromium_with_its_window(
    client: GuestClient, tmp_path: Path
) -> None:
    await client.write_file("www/shop.html", PAGE)
    await client.write_file("www/other.html", b"<title>Other</title>")
    await client.launch(["python", "-m", "http.server", "8000", "--directory", "www"])
    # As the published tasks start it.
    await client.launch(["google-chrome", "--remote-debugging-port=1337"])
    await client.launch(["socat", "tcp-listen:9222,fork", "tcp:localhost:1337"])
    await client.wait(window_name="Chromium", min_colors=20, timeout_s=WEB_S)
    await chrome.open_tabs(client, [SHOP, OTHER])
    await client.await_rest(rest_s=0.3, timeout_s=WEB_S)
    assert await reward(client, tmp_path, "or", *CHANGED, is_on_page("Sofa"), has_tabs(SHOP)) == 0.0
    await change_settings(client)
    # What Chrome waits before it writes: cookies would be lost with it, bookmarks come late at first.
    await asyncio.sleep(chrome.PROFILE_S["cookie_data"])
    right = (*CHANGED, is_on_page("Lamp"), has_tabs(SHOP, OTHER))
    assert await reward(client, tmp_path, "and", *right) == 1.0
    # As tasks end it.
    await client.execute(["pkill", "chrome"])
    await client.await_rest(rest_s=0.3, timeout_s=WEB_S)
    assert await client.windows() == []
    visited = {"type": "history", "dest": "History"}
    cookies = {"type": "cookie_data", "dest": "Cookies"}
    seen: list[Check] = [
        ("check_history_deleted", visited, {"type": "keywords", "keywords": ["shop.html"]}),
        ("is_cookie_deleted", cookies, {"type": "domains", "domains": ["localhost"]}),
    ]
    assert await reward(client, tmp_path, "or", *seen) == 0.0
    # And pyautogui works in the desktop, as the tasks' commands want it to.
    command = ["python", "-c", "import pyautogui; pyautogui.click(5, 5); pyautogui.press('a')"]
    assert (await client.execute(command)).returncode == 0


async def test_vlcs_getters_on_vlc(client: GuestClient, tmp_path: Path) -> None:
    film = "-f lavfi -i testsrc=duration=600:size=64x48:rate=5 -c:v mpeg4 film.mp4"
    await client.execute(f"ffmpeg -loglevel error {film}", shell=True)
    await client.launch("VLC_VERBOSE=-1 vlc --no-audio --no-video-title-show film.mp4", shell=True)
    await client.wait(window_name="film.mp4", min_colors=100, stable_s=0, timeout_s=WEB_S)
    status = {"type": "vlc_playing_info", "dest": "status.xml"}

    def plays(name: str) -> Check:
        return ("is_vlc_playing", status, {"type": "file_name", "file_name": name})

    config = {"type": "vlc_config", "dest": "vlcrc"}
    folder: Check = (
        "is_vlc_recordings_folder",
        config,
        {"recording_file_path": "/home/user/Music"},
    )
    assert await reward(client, tmp_path, "or", plays("other.mp4"), folder) == 0.0
    change = "echo input-record-path=/home/user/Music >> ~/.config/vlc/vlcrc"
    await client.execute(change, shell=True)
    assert await reward(client, tmp_path, "and", plays("film.mp4"), folder) == 1.0
    pause = "curl -s -u :password localhost:8080/requests/status.xml?command=pl_pause"
    await client.execute(pause, shell=True)
    assert await reward(client, tmp_path, "and", plays("film.mp4")) == 0.0
