"""Which tasks to train on and which to hold out, so that nothing of one side is seen on the other.

OSWorld's tasks share files, sources and whole wordings: tasks that do are one family, and a family is on
one side. Which side is decided by a hash, so it does not depend on what else is in the folder unless
that joins two families.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dart_gui.env.osworld.tasks import HISTORY_URL, NAME, OsworldFolder, urls_of
from dart_gui.errors import ConfigError

TRAIN, HELDOUT = "train", "heldout"
MAX_SHARED = 8
ContentOf = Callable[[str], str | None]
"""The sha256 of what a URL gives, where that is known."""


def unknown(_: str) -> str | None:
    return None


def families(
    texts: Mapping[str, Mapping[str, Any]], *, content_of: ContentOf = unknown
) -> list[list[str]]:
    """The tasks, those that share something together: a file by its URL, or by ``content_of`` where it
    was downloaded, a source page or an instruction. A page that more than ``MAX_SHARED`` tasks name is
    a collection, and joins none. Both levels are sorted."""
    parent = {task_id: task_id for task_id in texts}

    def top(task_id: str) -> str:
        while parent[task_id] != task_id:
            task_id = parent[task_id]
        return task_id

    bearers: dict[str, list[str]] = {}
    for task_id in sorted(texts):
        for mark in _marks(texts[task_id], content_of):
            bearers.setdefault(mark, []).append(task_id)
    for mark, task_ids in bearers.items():
        if mark.startswith("source:") and len(task_ids) > MAX_SHARED:
            continue
        for task_id in task_ids[1:]:
            one, other = sorted((top(task_ids[0]), top(task_id)))
            parent[other] = one
    found: dict[str, list[str]] = {}
    for task_id in sorted(texts):
        found.setdefault(top(task_id), []).append(task_id)
    return sorted(found.values())


def _marks(text: Mapping[str, Any], content_of: ContentOf) -> Iterable[str]:
    for url in urls_of(text):
        if url != HISTORY_URL:
            yield f"url:{url.removesuffix('?download=true')}"
            if digest := content_of(url):
                yield f"content:{digest}"
    # Variants of one task are derived from one page, and have often one wording.
    sources = text.get("source") or ()
    for source in [sources] if isinstance(sources, str) else sources:
        if source.startswith("http"):
            yield f"source:{source.strip().lower()}"
    yield f"instruction:{' '.join(str(text['instruction']).lower().split())}"


def split_by_task(
    texts: Mapping[str, Mapping[str, Any]],
    *,
    share: float,
    salt: str = "",
    content_of: ContentOf = unknown,
) -> dict[str, list[str]]:
    """About ``share`` of each domain's tasks held out, whole families at a time.

    Families go in the order of their hash with ``salt``. Of each domain as many tasks are held out as
    come nearest to its share without a family that would take more than is left.

    Raises:
        ConfigError: ``share`` is not between 0 and 1, or one side is left without a task.
    """
    if not 0.0 < share < 1.0:
        raise ConfigError(f"the share to hold out is between 0 and 1, got {share:g}")
    left = {
        domain: share * sum(_domain(task_id) == domain for task_id in texts)
        for domain in {_domain(task_id) for task_id in texts}
    }
    sides: dict[str, list[str]] = {TRAIN: [], HELDOUT: []}
    for family in sorted(
        families(texts, content_of=content_of), key=lambda family: _hash(family[0], salt)
    ):
        counts = {d: sum(_domain(t) == d for t in family) for d in {_domain(t) for t in family}}
        fits = all(count <= left[domain] + 0.5 for domain, count in counts.items())
        if fits:
            for domain, count in counts.items():
                left[domain] -= count
        sides[HELDOUT if fits else TRAIN] += family
    return _checked(sides)


def split_by_domain(
    texts: Mapping[str, Mapping[str, Any]],
    domains: Iterable[str],
    *,
    content_of: ContentOf = unknown,
) -> dict[str, list[str]]:
    """The tasks of ``domains`` held out; those elsewhere that share something with one of them are on
    neither side.

    Raises:
        ConfigError: there is no such domain, or one side is left without a task.
    """
    held, known = set(domains), {_domain(task_id) for task_id in texts}
    if strange := held - known:
        raise ConfigError(
            f"there is no domain {', '.join(sorted(strange))}; there are {', '.join(sorted(known))}"
        )
    sides: dict[str, list[str]] = {TRAIN: [], HELDOUT: []}
    for family in families(texts, content_of=content_of):
        inside = [task_id for task_id in family if _domain(task_id) in held]
        sides[HELDOUT] += inside
        sides[TRAIN] += [] if inside else family
    return _checked(sides)


def write_split(tasks: OsworldFolder, sides: Mapping[str, list[str]], out: Path) -> list[Path]:
    """``train.json`` and ``heldout.json`` in OSWorld's form of a list, with a link ``examples`` to the
    tasks, so that each may be named as ``osworld@OUT/train.json``."""
    out.mkdir(parents=True, exist_ok=True)
    link, target = out / "examples", (tasks.folder / "examples").resolve()
    if not link.exists():
        os.symlink(target, link)
    elif link.resolve() != target:
        raise ConfigError(f"{link} is there and leads to other tasks than {target}")
    written = []
    for side, task_ids in sides.items():
        by_domain: dict[str, list[str]] = {}
        for task_id in sorted(task_ids):
            by_domain.setdefault(_domain(task_id), []).append(task_id.rpartition("/")[2])
        path = out / f"{side}.json"
        path.write_text(json.dumps(by_domain, indent=2) + "\n", encoding="utf-8")
        written.append(path)
    return written


def _checked(sides: dict[str, list[str]]) -> dict[str, list[str]]:
    for side, task_ids in sides.items():
        if not task_ids:
            raise ConfigError(f"no task is left to {side}: hold out another share or other domains")
        task_ids.sort()
    return sides


def _domain(task_id: str) -> str:
    return task_id.removeprefix(f"{NAME}/").partition("/")[0]


def _hash(text: str, salt: str) -> str:
    return hashlib.sha256(f"{salt}:{text}".encode()).hexdigest()
