"""Desktops as a suite: which tasks there are, and where the desktops come from."""

from __future__ import annotations

from pathlib import Path

from dart_gui.config import EnvConfig
from dart_gui.env.desktop.cluster import DesktopCluster
from dart_gui.env.desktop.env import Pace
from dart_gui.env.desktop.mini import NAME, VERSION, mini_tasks
from dart_gui.env.desktop.pool import DesktopPool, DesktopSource
from dart_gui.env.desktop.tasks import TaskSource
from dart_gui.env.providers.limits import Limits
from dart_gui.env.providers.private import PrivateXvfbProvider
from dart_gui.env.providers.xvfb import check_machine
from dart_gui.env.server.client import ServerSource
from dart_gui.env.suites import Suite
from dart_gui.errors import AuthError


def open_desktops(config: EnvConfig, tasks: TaskSource) -> DesktopCluster:
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
    return DesktopCluster(_source(config), tasks, num_envs=config.num_envs, pace=pace)


def _source(config: EnvConfig) -> DesktopSource:
    if config.servers:
        return ServerSource(config.servers, read_server_token(config))
    provider = PrivateXvfbProvider(
        width=config.desktop_width,
        height=config.desktop_height,
        limits=Limits(memory_mb=config.desktop_memory_mb),
    )
    return DesktopPool(provider, max_taken=config.num_envs, spares=config.desktop_spares)


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


def _open_mini(config: EnvConfig) -> DesktopCluster:
    return open_desktops(config, mini_tasks())


def _check_machine(config: EnvConfig) -> str:
    if config.servers:
        read_server_token(config)
        return f"desktops of {', '.join(config.servers)}"
    check_machine()
    return f"Xvfb desktops of {config.desktop_width} x {config.desktop_height} on this machine"


SUITE = Suite(
    name=NAME,
    task_ids=mini_tasks().task_ids,
    default_tasks=mini_tasks().task_ids,
    env_version=VERSION,
    open_cluster=_open_mini,
    check_machine=_check_machine,
)
