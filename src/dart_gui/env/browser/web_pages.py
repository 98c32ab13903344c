"""Your own HTML pages, or a site on this machine, as a suite of tasks.

Each document of a task offers ``window.dartTask``:

    window.dartTask = {
      reset(seed, task) { ... return "the instruction"; },
      state() { return {done: false, reward: 0}; },
    };

``reset`` makes the instance of ``seed``, in which ``Math.random()`` is a function of the seed too;
``task`` is the name of the task, for a document that holds several. ``state`` says whether the task
has ended, and anything that a reward is made of: ``reward`` in [0, 1] (and ``success``, by default
``reward >= 1``), or whatever a reward function in Python reads. Both may be async, and must not wait
for a timer: the page's clock stands still while they run.

Each episode has a fresh browser context: no storage, cookie or cache is left of another one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dart_gui.config import EnvConfig
from dart_gui.env.browser.chromium import describe_chromium
from dart_gui.env.protocol import EnvCluster
from dart_gui.env.suites import Suite
from dart_gui.errors import ConfigError
from dart_gui.types import Evaluation, Task

State = Mapping[str, Any]
"""What ``dartTask.state()`` returned, as JSON."""
Reward = Callable[[Task, State], "float | Evaluation"]
"""The worth of an episode that ended in a state, in [0, 1]; called once, in a thread."""


def page_suite(
    name: str,
    pages: str | Path,
    *,
    tasks: Mapping[str, str] | Sequence[str] | None = None,
    default_tasks: Sequence[str] | None = None,
    size: tuple[int, int] = (160, 210),
    reward: Reward | None = None,
    script: str = "",
    version: str = "",
) -> Suite:
    """A suite of web pages.

    Args:
        pages: a folder of HTML files, or the http(s) URL under which a site is served. Links lead
            from page to page within it, and nowhere else.
        tasks: task -> its page, relative to ``pages``, which may have a query. Left out, each HTML
            file at the top of the folder is a task by its name; a list names some of them.
        default_tasks: what ``env.tasks = []`` means; all tasks if left out.
        size: width and height of the screen in pixels.
        reward: the worth of the last state; if left out, the page's own ``reward``.
        script: JavaScript that runs in every document before its own, for a site that you do not
            want to change: it can set ``window.dartTask``.
        version: changes whenever the same actions would lead to something else. For a folder it is
            found from the content of its files if left out.

    Raises:
        ConfigError: there is no such folder or page, or a site has no version.
    """
    is_site = urlsplit(str(pages)).scheme in ("http", "https")
    home = str(pages).rstrip("/") + "/" if is_site else _folder(name, pages).as_uri() + "/"
    if is_site and not version:
        raise ConfigError(f"the suite {name!r} of the site {pages} needs a version, such as '1'")
    if is_site and not isinstance(tasks, Mapping):
        raise ConfigError(f"the suite {name!r} of the site {pages} needs tasks: {{task: page}}")
    paths = tasks if isinstance(tasks, Mapping) else _html_files(name, Path(pages), tasks)
    if not is_site:
        _check_files(name, Path(pages), paths)
    chosen = WebPages(
        name=name,
        home=home,
        urls={f"{name}/{task}": home + path for task, path in paths.items()},
        screen=size,
        reward=reward,
        script=script,
    )
    ids = tuple(sorted(chosen.urls))
    return Suite(
        name=name,
        task_ids=ids,
        default_tasks=tuple(f"{name}/{task}" for task in default_tasks or sorted(paths)),
        env_version=f"{name}-{version or _digest(Path(pages))}+{size[0]}x{size[1]}.v1",
        open_cluster=chosen.open_cluster,
        check_machine=describe_chromium,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WebPages:
    """What a suite of pages is made of."""

    name: str
    home: str  # URL that all its pages begin with
    urls: Mapping[str, str]  # task id -> page
    screen: tuple[int, int]
    reward: Reward | None = None
    script: str = ""

    def open_cluster(self, config: EnvConfig) -> EnvCluster:
        from dart_gui.env.browser.cluster import BrowserCluster
        from dart_gui.env.browser.web_family import WebFamily

        return BrowserCluster(config, WebFamily(self))

    async def evaluate(self, task: Task, state: State) -> Evaluation:
        """Raises ``ValueError`` for a reward that is no number in [0, 1]."""
        if self.reward is None:
            return to_evaluation(state.get("reward"), state.get("success"))
        given = await asyncio.to_thread(self.reward, task, state)
        if isinstance(given, Evaluation):
            return to_evaluation(given.reward, given.success)
        return to_evaluation(given, None)


def to_evaluation(reward: object, success: object) -> Evaluation:
    """Raises ``ValueError``: the reward is no number in [0, 1], or success no truth value."""
    is_number = isinstance(reward, int | float) and not isinstance(reward, bool)
    if not is_number or not math.isfinite(reward) or not 0 <= reward <= 1:  # type: ignore[arg-type, operator]
        raise ValueError(f"the reward is {reward!r}, expected a number in [0, 1]")
    if success is not None and not isinstance(success, bool):
        raise ValueError(f"success is {success!r}, expected true or false")
    value = float(reward)  # type: ignore[arg-type]
    return Evaluation(reward=value, success=value >= 1.0 if success is None else success)


def home_script(home: str) -> str:
    return f"globalThis.__dartHome = {json.dumps(home)};"


def _folder(name: str, pages: str | Path) -> Path:
    folder = Path(pages).absolute()
    if not folder.is_dir():
        raise ConfigError(f"the pages of the suite {name!r}: {folder} is not a folder")
    return folder


def _html_files(name: str, folder: Path, tasks: Sequence[str] | None) -> dict[str, str]:
    names = sorted(path.stem for path in folder.glob("*.html")) if tasks is None else tasks
    if not names:
        raise ConfigError(f"the pages of the suite {name!r}: there is no .html file in {folder}")
    return {task: f"{task}.html" for task in names}


def _check_files(name: str, folder: Path, paths: Mapping[str, str]) -> None:
    for task, path in paths.items():
        file = folder / path.partition("?")[0].partition("#")[0]
        if not file.is_file():
            raise ConfigError(f"the page of {name}/{task}: there is no file {file}")


def _digest(folder: Path) -> str:
    """Of the names and the content of all files below ``folder``."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
