"""Desktops as a suite: which tasks there are, and where the desktops come from."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from dart_gui.config import EnvConfig
from dart_gui.env.desktop.cluster import DesktopCluster, MakeEnv
from dart_gui.env.desktop.env import DesktopEnv, Pace
from dart_gui.env.desktop.mini import FOLDER, NAME, VERSION
from dart_gui.env.desktop.pool import DesktopPool, DesktopSource
from dart_gui.env.desktop.tasks import TaskFolder, TaskSource
from dart_gui.env.providers import docker, xvfb
from dart_gui.env.providers.limits import Limits
from dart_gui.env.providers.private import PrivateXvfbProvider
from dart_gui.env.providers.protocol import Provider
from dart_gui.env.server.client import ServerSource
from dart_gui.env.suites import Suite
from dart_gui.errors import AuthError, SetupError
from dart_gui.types import Task

PROGRAMS = {  # what an application of OSWorld's names is on Debian
    "mousepad": "mousepad",
    "terminal": "xterm",
    "thunar": "thunar",
    "libreoffice_calc": "soffice",
    "libreoffice_impress": "loimpress",
    "libreoffice_writer": "soffice",
}
EXTRA = frozenset({"thunar", "soffice", "loimpress"})
"""Programs that not every machine with desktops has."""


def open_desktops(
    config: EnvConfig, tasks: TaskSource, *, make_env: MakeEnv = DesktopEnv
) -> DesktopCluster:
    """A cluster over the env servers of a configuration, or over this machine; not started.

    Raises:
        AuthError: the servers' token cannot be read.
    """
    pace = Pace(
        react_s=config.react_ms / 1e3,
        settle_s=config.settle_ms / 1e3,
        settle_limit_s=config.settle_limit_ms / 1e3,
        wait_s=config.wait_ms / 1e3,
    )
    return DesktopCluster(
        _source(config), tasks, num_envs=config.num_envs, pace=pace, make_env=make_env
    )


def _source(config: EnvConfig) -> DesktopSource:
    if config.servers:
        return ServerSource(config.servers, read_server_token(config))
    provider = _provider(config)
    return DesktopPool(provider, max_taken=config.num_envs, spares=config.desktop_spares)


def _provider(config: EnvConfig) -> Provider:
    if config.provider == "docker":
        return docker.private_docker_provider(config)
    return PrivateXvfbProvider(
        width=config.desktop_width,
        height=config.desktop_height,
        limits=Limits(memory_mb=config.desktop_memory_mb),
    )


def read_server_token(config: EnvConfig) -> str:
    """Raises ``AuthError`` where there is none."""
    try:
        token = Path(config.server_token_file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AuthError(
            f"cannot read the env servers' token from env.server_token_file = "
            f"{config.server_token_file!r}: {error}"
        ) from None
    if not token:
        raise AuthError(f"the token file {config.server_token_file} is empty")
    return token


def check_desktops(config: EnvConfig, programs: Iterable[str]) -> str:
    """Where the desktops will come from. Raises ``SetupError`` or ``AuthError`` where they cannot."""
    if config.servers:
        read_server_token(config)
        return f"desktops of {', '.join(config.servers)}"
    if config.provider == "docker":
        return docker.check_machine(config)  # the programs are those of the image
    xvfb.check_machine()
    if missing := sorted(program for program in programs if not shutil.which(program)):
        raise SetupError(
            f"the tasks need {', '.join(missing)}, not found on this machine: install them (Debian: "
            "mousepad; thunar; libreoffice-calc libreoffice-writer for soffice; libreoffice-impress for "
            "loimpress), or name others in env.tasks"
        )
    return f"Xvfb desktops of {config.desktop_width} x {config.desktop_height} on this machine"


def desktop_suite(name: str, folder: Path, *, version: str) -> Suite:
    """The tasks in a folder of JSON files of OSWorld's format as a suite; see ``tasks``. Those of
    ``EXTRA`` programs are there and not among the default tasks.

    ``version`` changes whenever the same actions would lead to something else.

    Raises:
        ConfigError: there is no task, or a file is none.
    """
    tasks = TaskFolder(folder, name=name)
    programs = {task_id: programs_of(tasks, task_id) for task_id in tasks.task_ids}
    light = tuple(task_id for task_id, needed in programs.items() if not needed & EXTRA)
    default = light or tasks.task_ids

    def check(config: EnvConfig) -> str:
        needed = {name for task_id in config.tasks or default for name in programs.get(task_id, ())}
        return check_desktops(config, needed)

    return Suite(
        name=name,
        task_ids=tasks.task_ids,
        default_tasks=default,
        env_version=version,
        open_cluster=lambda config: open_desktops(config, tasks),
        check_machine=check,
        domain_of=lambda task_id: domain_of(tasks, task_id),
    )


def domain_of(tasks: TaskFolder, task_id: str) -> str:
    """The application of a task; OSWorld's ``multi_apps`` where there are several, ``os`` without."""
    apps = tasks.instantiate(Task(task_id=task_id, seed=0)).related_apps
    return "multi_apps" if len(apps) > 1 else next(iter(apps), "os")


def programs_of(tasks: TaskFolder, task_id: str) -> frozenset[str]:
    """What must be installed for a task."""
    apps = tasks.instantiate(Task(task_id=task_id, seed=0)).related_apps
    return frozenset(PROGRAMS[app] for app in apps if app in PROGRAMS)


SUITE = desktop_suite(NAME, FOLDER, version=VERSION)
