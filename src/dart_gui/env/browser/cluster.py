"""Many browser pages as environments to lease."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from playwright.async_api import Error, async_playwright

from dart_gui.config import EnvConfig
from dart_gui.env.browser.chromium import find_chromium
from dart_gui.env.browser.miniwob import MiniwobPages
from dart_gui.env.browser.page_env import PageEnv, PageFamily
from dart_gui.env.browser.pages import BrowserProcess, PageSlot, first_line
from dart_gui.env.protocol import ClusterStats
from dart_gui.errors import EnvError, SetupError
from dart_gui.types import Task


class BrowserCluster:
    """``num_envs`` pages over ``num_browsers`` Chromium processes.

    Pages are reused between episodes where their family allows it; what a page did before does not
    show in the next one. A page that broke is replaced, and a browser that died is launched again,
    when the next lease needs it.
    """

    def __init__(
        self,
        config: EnvConfig,
        family: PageFamily | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._family = family or MiniwobPages()
        self._clock = clock
        self._stack = AsyncExitStack()
        self._slots: list[PageSlot] = []
        self._free: list[PageSlot] = []  # unused for longest first
        self._num_free = asyncio.Semaphore(0)
        self._leased_at: dict[PageSlot, float] = {}
        self._busy_s = 0.0

    async def start(self) -> None:
        """Launch the browsers and open a first page.

        Raises:
            SetupError: no browser, a browser that does not start, or no pages.
        """
        self._family.check_machine()
        info = find_chromium(self._config.browser)
        try:
            await self._launch()
        except (Error, EnvError) as error:
            await self.close()
            raise SetupError(
                f"the browser {info.path} (from {info.source}) did not start: "
                f"{first_line(error)}. Check that it is a Chromium for this "
                "machine and that its libraries are installed; env.browser names another one."
            ) from None

    @asynccontextmanager
    async def lease(self, task: Task | None = None) -> AsyncIterator[PageEnv]:
        """A single-use environment on a free page; with ``task``, one where its reset is cheap.

        Raises:
            ConfigError: there is no such task.
            EnvError: the cluster was not started, or is closed.
        """
        url = self._family.url(task.task_id) if task is not None else ""
        if not self._slots:
            raise EnvError("the environment cluster is not running: it was not started, or closed")
        await self._num_free.acquire()
        slot = self._take(url)
        self._leased_at[slot] = self._clock()
        env = PageEnv(slot, self._config, self._family)
        try:
            yield env
        finally:
            try:
                await env.close()
                await slot.tidy()
            finally:
                self._busy_s += self._clock() - self._leased_at.pop(slot)
                self._give_back(slot)

    async def close(self) -> None:
        """End the browsers. Idempotent."""
        self._slots = []
        self._free = []
        await self._stack.aclose()

    def stats(self) -> ClusterStats:
        now = self._clock()
        running = sum(now - at for at in self._leased_at.values())
        return ClusterStats(
            num_envs=self._config.num_envs,
            num_busy=len(self._leased_at),
            num_replaced=sum(slot.num_replaced for slot in self._slots),
            busy_s=self._busy_s + running,
        )

    def _take(self, url: str) -> PageSlot:
        """The free page that has the document, else the one unused for longest."""
        slot = next((free for free in self._free if free.loaded == url), self._free[0])
        self._free.remove(slot)
        return slot

    def _give_back(self, slot: PageSlot) -> None:
        self._free.append(slot)
        self._num_free.release()

    async def _launch(self) -> None:
        config = self._config
        info = find_chromium(config.browser)
        playwright = await self._stack.enter_async_context(async_playwright())
        processes = []
        for _ in range(min(config.num_browsers, config.num_envs)):
            process = BrowserProcess(playwright, info, timeout_s=config.timeout_s)
            self._stack.push_async_callback(process.close)
            processes.append(process)
        await asyncio.gather(*(process.get() for process in processes))
        for i in range(config.num_envs):
            process = processes[i % len(processes)]
            slot = PageSlot(process, self._family.settings, timeout_s=config.timeout_s)
            self._slots.append(slot)
            self._give_back(slot)
        await self._slots[0].open()
