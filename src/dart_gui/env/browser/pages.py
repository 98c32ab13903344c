"""Browser processes and the pages in them, and how both are replaced when they break.

A ``PageSlot`` is a place for a page: it opens one when it is needed and drops it when it broke.
Each page has a context of its own, hence a renderer process of its own: one that hangs stops no
other.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, CDPSession, Error, Page, Playwright

from dart_gui.env.browser.chromium import ChromiumInfo
from dart_gui.env.browser.traffic import Traffic
from dart_gui.errors import EnvError, SetupError, boundary

PAGE_EPOCH = datetime.datetime(2024, 6, 15, 12, 0, 0, tzinfo=datetime.UTC)
"""What the page's clock shows when a document begins to load."""
_ARGS = (
    "--disable-smooth-scrolling",
    "--disable-threaded-animation",
    # Raster: the same content gives the same pixels, whatever was on the tile before.
    "--disable-partial-raster",
    "--disable-skia-runtime-opts",
    "--num-raster-threads=1",
    "--disable-lcd-text",
    "--font-render-hinting=none",
    # A picture is drawn in the frame that it appears in, not when its decoder is done.
    "--disable-checker-imaging",
    "--mute-audio",
)


def script_beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


INIT_JS = script_beside("init.js")
"""Holds a document still and gives us ``__dart``. The first script of every page."""
STAY_JS = script_beside("stay.js")
"""Keeps a page from being left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PageSettings:
    viewport: tuple[int, int]  # width and height, in CSS pixels
    init_scripts: tuple[str, ...]  # run in every new document, before its own
    watches_requests: bool = False  # for ``PageSlot.quiet``


class BrowserProcess:
    """One Chromium process; launched on demand, and again after it died."""

    def __init__(self, playwright: Playwright, info: ChromiumInfo, *, timeout_s: float) -> None:
        self._playwright = playwright
        self._info = info
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._browser: Browser | None = None
        self._pid = 0
        self.num_launches = 0

    @property
    def pid(self) -> int:
        """Of the live browser process; 0 before the first launch."""
        return self._pid

    async def get(self) -> Browser:
        """The live browser. Raises ``playwright.async_api.Error`` where none can be launched."""
        async with self._lock:
            if self._browser is None or not self._browser.is_connected():
                self._browser = await self._launch()
                self._pid = await _browser_pid(self._browser)
                self.num_launches += 1
            return self._browser

    async def close(self) -> None:
        browser, self._browser = self._browser, None
        if browser is None or not browser.is_connected():
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await browser.close()
        except (Error, TimeoutError):
            self._kill()

    def condemn(self, browser: Browser | None) -> None:
        """Kill ``browser``, which no longer closes a page; the next ``get`` launches another."""
        if browser is not None and browser is self._browser:
            self._kill()
            self._browser = None  # is_connected() is true until the death is noticed

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    async def _launch(self) -> Browser:
        return await self._playwright.chromium.launch(
            executable_path=self._info.path,
            headless=True,
            args=list(_ARGS),
            # Scrollbars belong to the tasks: a page without them hides that there is more below.
            ignore_default_args=["--hide-scrollbars"],
            timeout=self._timeout_s * 1000,
            # The owner of the cluster decides what a signal means, and calls close().
            handle_sigint=False,
            handle_sigterm=False,
            handle_sighup=False,
        )


class PageSlot:
    """A place for one page of ``process``; at most one episode uses it at a time."""

    def __init__(
        self, process: BrowserProcess, settings: PageSettings, *, timeout_s: float
    ) -> None:
        self._process = process
        self._settings = settings
        self._timeout_s = timeout_s
        self._page: Page | None = None
        self._cdp: CDPSession | None = None
        self._broken = False
        self._loaded = ""
        self._traffic: Traffic | None = None
        self.num_replaced = 0

    @property
    def loaded(self) -> str:
        """Address of the document in the page; empty for none."""
        return self._loaded

    @property
    def page(self) -> Page:
        """The open page. Raises ``EnvError`` where there is none."""
        if self._page is None:
            raise EnvError("the page is gone: it was closed or never opened")
        return self._page

    @property
    def browser_pid(self) -> int:
        """Process id of the browser that the page is in."""
        return self._process.pid

    @property
    def broken(self) -> bool:
        """Whether the page failed an operation, crashed or was closed behind our back."""
        return self._broken or (self._page is not None and self._page.is_closed())

    @asynccontextmanager
    async def operation(self, what: str) -> AsyncIterator[None]:
        """Bound a browser operation by ``timeout_s``; whatever goes wrong condemns the page.

        Raises:
            EnvError: the operation failed or took too long.
        """
        done = False
        try:
            with boundary(EnvError, what):
                try:
                    async with asyncio.timeout(self._timeout_s):
                        yield
                except TimeoutError:
                    raise EnvError(
                        f"{what}: the page gave no answer in {self._timeout_s:g} s "
                        "(env.timeout_s); it is replaced"
                    ) from None
                except Error as error:  # its text has the log of the browser behind the first line
                    raise EnvError(f"{what}: {first_line(error)}") from error
            done = True
        finally:
            # A cancelled operation condemns too: the page is in the middle of something.
            self._broken = self._broken or not done

    async def open(self) -> None:
        """Have a working page, opening one where there is none.

        Raises:
            EnvError: the browser does not give one.
        """
        await self.tidy()
        if self._page is not None:
            return
        width, height = self._settings.viewport
        async with self.operation("opening a page"):
            browser = await self._process.get()
            context = await browser.new_context(
                viewport={"width": width, "height": height},
                device_scale_factor=1,
                locale="en-US",
                timezone_id="UTC",
                accept_downloads=False,
                reduced_motion="reduce",
                # A service worker would answer requests that nobody counts.
                service_workers="block" if self._settings.watches_requests else "allow",
            )
            page = self._page = await context.new_page()
            context.on("page", _close_popup)
            page.on("crash", self._on_crash)
            # As one: the order of several is not promised, and the later ones use the first.
            await page.add_init_script(script="\n".join(self._settings.init_scripts))
            # Without clock.install(): the wall time between it and pause_at() would enter the
            # page's performance.now() and the phase of its animation frames.
            await page.clock.pause_at(PAGE_EPOCH)
            await _require_clock(page)
            self._cdp = await context.new_cdp_session(page)
            self._traffic = Traffic(page) if self._settings.watches_requests else None

    async def load(self, url: str) -> None:
        """Have a fresh document in the page, its clock at ``PAGE_EPOCH``."""
        self._loaded = ""
        await self.page.goto(url, wait_until="load")
        self._loaded = url

    async def quiet(self) -> None:
        """Wait until every request of the page is answered and the page has heard of it."""
        assert self._traffic is not None, "the settings of this page do not watch its requests"
        await self._traffic.quiet()

    async def screenshot(self, width: int, height: int) -> bytes:
        """PNG of the top left ``width`` x ``height`` pixels."""
        if self._cdp is None:
            raise EnvError("the page is gone: it was closed or never opened")
        shot: dict[str, Any] = await self._cdp.send(
            "Page.captureScreenshot",
            {
                "format": "png",
                "optimizeForSpeed": True,
                "clip": {"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
            },
        )
        return base64.b64decode(shot["data"])

    async def discard(self) -> None:
        """Drop a working page with all that it stored; ``open`` makes another."""
        await self._drop()

    async def tidy(self) -> None:
        """Drop the page if it broke: one that hangs would go on burning a core."""
        if self.broken:
            self.num_replaced += self._page is not None
            await self._drop()

    async def _drop(self) -> None:
        page, self._page, self._cdp, self._broken = self._page, None, None, False
        self._loaded, self._traffic = "", None
        if page is None:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await page.context.close()
        except TimeoutError:
            self._process.condemn(page.context.browser)
        except Error:
            return  # its browser is dead: nothing is left to close

    def _on_crash(self, _page: Page) -> None:
        self._broken = True


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


async def _close_popup(page: Page) -> None:
    with contextlib.suppress(Error):
        await page.close()


async def _browser_pid(browser: Browser) -> int:
    session = await browser.new_browser_cdp_session()
    processes = (await session.send("SystemInfo.getProcessInfo"))["processInfo"]
    await session.detach()
    return next(int(process["id"]) for process in processes if process["type"] == "browser")


async def _require_clock(page: Page) -> None:
    """The in-page half of Playwright's clock, which we drive directly.

    ``page.clock.run_for`` keeps every call for documents to come, so that a page which is reused
    would neither start at ``PAGE_EPOCH`` nor stay fast.
    """
    if not await page.evaluate("typeof globalThis.__pwClock?.controller?.runFor === 'function'"):
        raise SetupError(
            "this version of Playwright keeps its page clock elsewhere than the versions that "
            "dart-gui knows; install the one of the constraints file"
        )
