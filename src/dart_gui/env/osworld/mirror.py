"""Fill the cache of downloads ahead of time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dart_gui.env.osworld.downloads import Cached, Downloads
from dart_gui.env.osworld.tasks import OsworldFolder, urls_of
from dart_gui.errors import EnvError


@dataclass(slots=True)
class Mirrored:
    files: dict[str, Cached] = field(default_factory=dict)  # by URL
    failures: dict[str, str] = field(default_factory=dict)  # URL -> what went wrong
    num_fetched: int = 0  # the others were there

    @property
    def num_bytes(self) -> int:
        """Of different files: several URLs may give one."""
        return sum({cached.sha256: cached.size for cached in self.files.values()}.values())


def urls_to_mirror(tasks: OsworldFolder) -> list[str]:
    return sorted({url for task_id in tasks.task_ids for url in urls_of(tasks.text(task_id))})


async def mirror(
    urls: Iterable[str],
    downloads: Downloads,
    *,
    jobs: int,
    on_file: Callable[[str], None] = lambda _: None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Mirrored:
    """Fetch what is not there yet, ``jobs`` at a time; ``on_file`` hears of each URL that is done with.
    One that fails is recorded, and the others go on. Whatever was whole stays when this is cancelled.
    """
    result, gate = Mirrored(), asyncio.Semaphore(jobs)

    async def fetch(url: str) -> None:
        async with gate:
            was_there = downloads.find(url) is not None
            try:
                result.files[url] = await downloads.get(url, on_bytes=on_bytes)
                result.num_fetched += not was_there
            except EnvError as error:
                result.failures[url] = str(error)
            on_file(url)

    async with asyncio.TaskGroup() as group:
        for url in urls:
            group.create_task(fetch(url))
    return result
