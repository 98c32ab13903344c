"""OSWorld's published tasks, read from a folder of the user's: ``evaluation_examples`` of its repository.

``<folder>/examples/<domain>/<id>.json`` are the tasks, ``<folder>/test_*.json`` lists of them by domain.
Nothing of it ships with this project.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from dart_gui.env.desktop.tasks import DesktopTask, Evaluator, SetupStep, read_object
from dart_gui.errors import ConfigError
from dart_gui.types import Task

NAME = "osworld"
DEFAULT_LIST = "test_all.json"
HISTORY_URL = (
    "https://huggingface.co/datasets/xlangai/ubuntu_osworld_file_cache/resolve/main/chrome/"
    "44ee5668-ecd5-4366-a6ce-c1c9b8d4e938/history_empty.sqlite?download=true"
)
"""The empty database that the set-up step ``update_browse_history`` fills."""

INFEASIBLE = "infeasible"


class Need(StrEnum):
    """What a task needs that no file cache gives."""

    GOOGLE = "a Google account"
    PROXY = "a proxy to live web sites"
    WEB = "live web sites"
    OCR = "easyocr with its models"
    UNKNOWN_STEP = "a set-up step that OSWorld itself does not have"


GOOGLE_STEPS = frozenset({"googledrive", "login"})
ABSENT_STEPS = frozenset({"tidy_desktop", "act", "replay"})
"""OSWorld has a name for them, and nothing behind it."""
STEP_KINDS = frozenset(
    {
        *("download", "upload_file", "change_wallpaper", "open", "launch", "execute", "command"),
        *("execute_with_verification", "sleep", "activate_window", "close_window", "wait"),
        *("chrome_open_tabs", "chrome_close_tabs", "update_browse_history", "proxy"),
        *GOOGLE_STEPS,
        *ABSENT_STEPS,
    }
)
WEB_GETTERS = frozenset(
    {"info_from_website", "gotoRecreationPage_and_get_html_content", "pdf_from_url"}
)
OCR_METRICS = frozenset({"compare_image_text"})


@dataclass(frozen=True, slots=True, kw_only=True)
class OsworldTask(DesktopTask):
    """A published task. Its checks are OSWorld's own: ``evaluator`` holds its ``postconfig`` alone."""

    domain: str
    published: Mapping[str, Any]  # ``evaluator`` of the JSON

    @property
    def is_infeasible(self) -> bool:
        """It cannot be done, and solved is who says so."""
        return self.published["func"] == INFEASIBLE


class OsworldFolder:
    """The tasks of ``folder``, or of one list; ``osworld/<domain>/<id>`` is a task's id.

    ``place`` is the folder, or the path of a list in it. Of a folder the list is ``test_all.json``, and
    all of ``examples`` where there is none.

    Raises:
        ConfigError: there is no such folder or list, a task of it is missing, or is none.
    """

    def __init__(self, place: Path) -> None:
        self.folder, paths = _find(place)
        self._texts = {
            f"{NAME}/{path.parent.name}/{path.stem}": read_object(path) for path in paths
        }
        for task_id in self._texts:
            self.instantiate(Task(task_id=task_id, seed=0))

    @property
    def task_ids(self) -> tuple[str, ...]:
        return tuple(sorted(self._texts))

    def check(self, task_id: str) -> str:
        if task_id not in self._texts:
            raise ConfigError(
                f"there is no task {task_id!r} among the {len(self._texts)} of {self.folder}"
            )
        return task_id

    def text(self, task_id: str) -> Mapping[str, Any]:
        """The JSON of a task."""
        return self._texts[self.check(task_id)]

    def instantiate(self, task: Task) -> OsworldTask:
        """The seed changes nothing: OSWorld's tasks have one instance each."""
        return parse(self.text(task.task_id), task_id=task.task_id)


def parse(text: Mapping[str, Any], *, task_id: str) -> OsworldTask:
    """Raises ``ConfigError`` where it is no task of OSWorld's format."""
    try:
        published = text["evaluator"]
        return OsworldTask(
            task_id=task_id,
            instruction=str(text["instruction"]),
            config=_steps(text.get("config", [])),
            evaluator=Evaluator(
                checks=(), every=True, postconfig=_steps(published.get("postconfig", []))
            ),
            related_apps=tuple(text.get("related_apps", [])),
            domain=task_id.split("/")[1],
            published=_checked(published),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"the task {task_id} is not of OSWorld's format: {type(error).__name__}: {error}"
        ) from None


def _steps(entries: Iterable[Mapping[str, Any]]) -> tuple[SetupStep, ...]:
    steps = [SetupStep(kind=e["type"], parameters=e.get("parameters", {})) for e in entries]
    for step in steps:
        if step.kind not in STEP_KINDS:
            raise ValueError(f"OSWorld has no set-up step {step.kind!r}")
    return tuple(steps)


def _checked(published: Mapping[str, Any]) -> Mapping[str, Any]:
    func = published["func"]
    if isinstance(func, list):
        for key in ("result", "expected", "options"):
            entries = published.get(key)
            if isinstance(entries, list) and entries and len(entries) != len(func):
                raise ValueError(f"{len(func)} of func, and {len(entries)} of {key}")
    elif not isinstance(func, str):
        raise ValueError(f"func is a name or a list of names, got {func!r}")
    if published.get("conj", "and") not in ("and", "or"):
        raise ValueError(f"conj is 'and' or 'or', got {published['conj']!r}")
    if func != INFEASIBLE and not published.get("result"):
        raise ValueError("the evaluator has no result")
    return published


def metrics_of(text: Mapping[str, Any]) -> list[str]:
    func = text["evaluator"]["func"]
    return list(func) if isinstance(func, list) else [func]


def getters_of(text: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries of ``result`` and ``expected``."""
    found: list[Mapping[str, Any]] = []
    for key in ("result", "expected"):
        entries = text["evaluator"].get(key) or []
        found += [e for e in (entries if isinstance(entries, list) else [entries]) if e]
    return found


def steps_of(text: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*text.get("config", []), *text["evaluator"].get("postconfig", [])]


def urls_of(text: Mapping[str, Any]) -> list[str]:
    """What a task downloads, each once: for its set-up, and to compare with."""
    urls: dict[str, None] = {}
    for step in steps_of(text):
        for file in step.get("parameters", {}).get("files", []):
            if step["type"] == "download":
                urls[file["url"]] = None
        if step["type"] == "update_browse_history":
            urls[HISTORY_URL] = None
    for url, _ in cloud_files(text["evaluator"]):
        urls[url] = None
    return list(urls)


def cloud_files(published: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(url, name that the getter looks for) of an evaluator's ``cloud_file`` entries."""
    for getter in getters_of({"evaluator": published}):
        if getter["type"] == "cloud_file":
            multi = bool(getter.get("multi", False))
            paths = getter["path"] if multi else [getter["path"]]
            dests = getter["dest"] if multi else [getter["dest"]]
            yield from zip(paths, dests, strict=True)


def needs_of(text: Mapping[str, Any]) -> frozenset[Need]:
    """What must be there besides the desktop, the evaluator and the cached files."""
    kinds = {step["type"] for step in steps_of(text)}
    getters = {getter["type"] for getter in getters_of(text)}
    needs: set[Need] = set()
    if kinds & GOOGLE_STEPS or "googledrive_file" in getters:
        needs.add(Need.GOOGLE)
    if kinds & ABSENT_STEPS:
        needs.add(Need.UNKNOWN_STEP)
    if text.get("proxy") or "proxy" in kinds:
        needs.add(Need.PROXY)
    if getters & WEB_GETTERS or "chrome_open_tabs" in kinds:
        needs.add(Need.WEB)
    if OCR_METRICS & set(metrics_of(text)):
        needs.add(Need.OCR)
    return frozenset(needs)


def _find(place: Path) -> tuple[Path, list[Path]]:
    folder = place.parent if place.is_file() else place
    examples = folder / "examples"
    if not examples.is_dir():
        raise ConfigError(
            f"there is no folder {examples}: name OSWorld's evaluation_examples, which has the tasks as "
            "examples/<domain>/<id>.json, or a list of tasks in it"
        )
    chosen = place if place.is_file() else folder / DEFAULT_LIST
    if not chosen.is_file():
        return folder, sorted(examples.glob("*/*.json"))
    return folder, [
        examples / domain / f"{task}.json"
        for domain, tasks in read_object(chosen).items()
        for task in tasks
    ]
