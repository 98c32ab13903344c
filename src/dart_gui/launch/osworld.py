"""``dart-gui osworld``: the files that OSWorld's tasks download, and lists to train and evaluate on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from dart_gui.env.osworld.downloads import Downloads
from dart_gui.env.osworld.mirror import Mirrored, mirror, urls_to_mirror
from dart_gui.env.osworld.split import (
    ContentOf,
    families,
    split_by_domain,
    split_by_task,
    unknown,
    write_split,
)
from dart_gui.env.osworld.tasks import OsworldFolder
from dart_gui.errors import ConfigError

MAX_FAILURES_SHOWN = 20


def run_mirror(console: Console, tasks: Path, cache: Path, *, jobs: int) -> int:
    """0 where every file is there in the end, 1 where some could not be fetched."""
    if jobs < 1:
        raise ConfigError(f"--jobs is at least 1, got {jobs}")
    urls = urls_to_mirror(OsworldFolder(tasks))
    columns = (TextColumn("{task.description}"), BarColumn())
    with Progress(*columns, MofNCompleteColumn(), TextColumn("files"), console=console) as bar:
        files = bar.add_task("mirror", total=len(urls))
        done = asyncio.run(
            mirror(urls, Downloads(cache), jobs=jobs, on_file=lambda _: bar.advance(files))
        )
    _say(console, done, cache)
    return 1 if done.failures else 0


def _say(console: Console, done: Mirrored, cache: Path) -> None:
    console.print(
        f"{len(done.files)} files ({done.num_bytes / 1e6:.1f} MB) in {cache}: {done.num_fetched} "
        f"fetched now, {len(done.files) - done.num_fetched} were there",
        highlight=False,
        soft_wrap=True,
    )
    for url, message in list(done.failures.items())[:MAX_FAILURES_SHOWN]:
        console.print(f"failed: {url}: {message}", highlight=False, markup=False, soft_wrap=True)
    if done.failures:
        console.print(
            f"{len(done.failures)} could not be fetched; the same command tries them again",
            style="red",
        )


def run_split(
    console: Console,
    place: Path,
    out: Path,
    *,
    share: float,
    domains: Sequence[str],
    salt: str,
    cache: Path | None,
) -> int:
    """Files are told apart by their content where ``cache`` has them, by their URL elsewhere."""
    tasks = OsworldFolder(place)
    texts = {task_id: tasks.text(task_id) for task_id in tasks.task_ids}
    content_of = unknown if cache is None else _contents(Downloads(cache))
    sides = (
        split_by_domain(texts, domains, content_of=content_of)
        if domains
        else split_by_task(texts, share=share, salt=salt, content_of=content_of)
    )
    for path in write_split(tasks, sides, out):
        console.print(
            f"osworld@{path}: {len(sides[path.stem])} tasks", highlight=False, soft_wrap=True
        )
    num_left = len(texts) - sum(len(side) for side in sides.values())
    together = sum(len(family) > 1 for family in families(texts, content_of=content_of))
    console.print(
        f"{together} families of tasks that share files or sources are on one side each"
        + (f"; {num_left} tasks are on neither" if num_left else ""),
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _contents(downloads: Downloads) -> ContentOf:
    def content_of(url: str) -> str | None:
        found = downloads.find(url)
        return found.sha256 if found else None

    return content_of
