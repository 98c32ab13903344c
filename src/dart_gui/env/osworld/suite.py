"""OSWorld's tasks as a suite, from a folder of the user's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dart_gui.config import EnvConfig
from dart_gui.env.desktop.cluster import DesktopCluster
from dart_gui.env.desktop.suite import check_desktops, open_desktops
from dart_gui.env.osworld.downloads import Downloads
from dart_gui.env.osworld.env import OsworldEnv, OsworldSettings
from dart_gui.env.osworld.evaluate import EvaluatorSettings
from dart_gui.env.osworld.pythons import INSTALL, imports_of, missing_here
from dart_gui.env.osworld.tasks import NAME, OsworldFolder, needs_of, urls_of
from dart_gui.env.suites import Suite
from dart_gui.errors import ConfigError, SetupError
from dart_gui.types import Task

VERSION = "2"
"""Changes whenever the same actions would lead to something else."""


def osworld_suite(place: str) -> Suite:
    """The tasks of a folder, or of one list in it; see ``OsworldFolder``. The default ones are those
    that need nothing but a desktop, the evaluator and files.

    Raises:
        ConfigError: there is no such folder or list, or a task of it is none.
    """
    tasks = OsworldFolder(Path(place))
    if not tasks.task_ids:
        raise ConfigError(f"there is no task in {place}")
    runs = tuple(task_id for task_id in tasks.task_ids if not needs_of(tasks.text(task_id)))
    texts = json.dumps([tasks.text(task_id) for task_id in tasks.task_ids], sort_keys=True)
    return Suite(
        name=NAME,
        task_ids=tasks.task_ids,
        default_tasks=runs or tasks.task_ids,
        env_version=f"{VERSION}-{hashlib.sha256(texts.encode()).hexdigest()[:12]}",
        open_cluster=lambda config: open_osworld(config, tasks),
        check_machine=lambda config: check_machine(config, tasks, default=runs),
    )


def open_osworld(config: EnvConfig, tasks: OsworldFolder) -> DesktopCluster:
    """A cluster of the desktops that a configuration says; not started. Raises ``AuthError``."""
    settings = OsworldSettings(
        folder=tasks.folder,
        downloads=_downloads(config),
        evaluator=EvaluatorSettings(
            python=Path(config.osworld_python).absolute(),
            timeout_s=config.osworld_evaluate_s,
            memory_mb=config.osworld_memory_mb,
        ),
        password=config.osworld_password,
    )
    return open_desktops(config, tasks, make_env=partial(OsworldEnv, settings=settings))


def check_machine(config: EnvConfig, tasks: OsworldFolder, *, default: tuple[str, ...]) -> str:
    """Raises ``SetupError`` where the evaluator or the desktops are missing, a task needs what cannot
    be had, or a file that is to be cached is not."""
    where = check_desktops(config, ())
    if not Path(config.osworld_python).is_file():
        raise SetupError(
            f"there is no env.osworld_python = {config.osworld_python}: run scripts/setup_osworld.py, "
            "which makes .venv-osworld with OSWorld's getters and metrics"
        )
    chosen = [tasks.check(task_id) for task_id in config.tasks] or list(default)
    for task_id in chosen:
        if needs := needs_of(tasks.text(task_id)):
            raise SetupError(
                f"the task {task_id} needs {' and '.join(sorted(needs))}, which is not supported: "
                "leave it out of env.tasks"
            )
    if not config.servers and config.provider == "xvfb":
        _check_pythons(tasks, chosen)
    cache = _downloads(config)
    urls = {url for task_id in chosen for url in urls_of(tasks.text(task_id))}
    missing = sorted(url for url in urls if cache.find(url) is None)
    if missing and config.osworld_offline:
        raise SetupError(
            f"{len(missing)} of {len(urls)} files are not in env.osworld_cache = {config.osworld_cache} "
            f"(the first is {missing[0]}): `dart-gui osworld mirror {tasks.folder} --cache "
            f"{config.osworld_cache}` fetches them"
        )
    cached = f"{len(urls) - len(missing)} of {len(urls)} files cached"
    return f"{len(chosen)} OSWorld tasks, {cached}; {where}"


def _check_pythons(tasks: OsworldFolder, chosen: Sequence[str]) -> None:
    """Raises ``SetupError`` where steps of tasks run what desktops of this machine lack."""
    lacking: dict[str, int] = {}
    for task_id in chosen:
        task = tasks.instantiate(Task(task_id=task_id, seed=0))
        for what in missing_here(imports_of((*task.config, *task.evaluator.postconfig))):
            lacking[what] = lacking.get(what, 0) + 1
    if lacking:
        counts = ", ".join(f"{what} ({count} tasks)" for what, count in sorted(lacking.items()))
        raise SetupError(
            f"of {len(chosen)} tasks, steps need what desktops here lack: {counts}. {INSTALL}. "
            "Or name others in env.tasks"
        )


def _downloads(config: EnvConfig) -> Downloads:
    return Downloads(Path(config.osworld_cache).absolute(), offline=config.osworld_offline)
