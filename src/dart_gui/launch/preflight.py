"""Everything that can be wrong is found before anything is written or started."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from dart_gui.agent.registry import agent_class
from dart_gui.config import Config
from dart_gui.env.suites import absolute_suite, get_suite
from dart_gui.errors import ConfigError, DartError, SetupError
from dart_gui.model.adapter_files import check_trains_anew
from dart_gui.model.folder import check_model_folder
from dart_gui.registry import absolute as absolute_reference
from dart_gui.rollout.engines.vllm_server import find_executable


def check(config: Config) -> Config:
    """The configuration with its paths made absolute, once all of it holds on this machine.

    Raises:
        ConfigError: a task is unknown, a folder is not a model.
        SetupError: there is no browser, a port is taken, the run folder cannot be written.
    """
    check_tasks(config)
    agent_class(config.agent.name)
    check_model_folder(Path(config.model.path))
    check_browser(config)
    check_port(config.rollout.host, config.rollout.port, service_url=config.rollout.url)
    check_token_file(config)
    check_vllm(config)
    check_writable(Path(config.run.dir))
    return absolute(config)


def absolute(config: Config) -> Config:
    """A run can then be continued from any folder."""
    model = {"path": str(Path(config.model.path).absolute())}
    run = {"dir": str(Path(config.run.dir).absolute())}
    curation = {"pool": _absolute_or_empty(config.curation.pool)}
    rollout = {"token_file": _absolute_or_empty(config.rollout.token_file)}
    env = {
        "suite": absolute_suite(config.env.suite),
        "osworld_cache": str(Path(config.env.osworld_cache).absolute()),
        "osworld_python": str(Path(config.env.osworld_python).absolute()),
    }
    agent = {"name": absolute_reference(config.agent.name)}
    return config.model_copy(
        update={
            "env": config.env.model_copy(update=env),
            "agent": config.agent.model_copy(update=agent),
            "model": config.model.model_copy(update=model),
            "curation": config.curation.model_copy(update=curation),
            "run": config.run.model_copy(update=run),
            "rollout": config.rollout.model_copy(update=rollout),
        }
    )


def _absolute_or_empty(path: str) -> str:
    return str(Path(path).absolute()) if path else ""


def check_tasks(config: Config) -> tuple[str, ...]:
    """The tasks that the configuration means."""
    suite = get_suite(config.env.suite)
    return tuple(suite.check(task_id) for task_id in config.env.tasks) or suite.default_tasks


def check_pool(config: Config) -> None:
    """Raises ``ConfigError`` where a pool is configured from which nothing can be borrowed."""
    if not config.curation.pool:
        return
    from dart_gui.data.pool import ExperiencePool, expired
    from dart_gui.runner.main import run_conditions

    now = run_conditions(config)
    entries = ExperiencePool(folder=Path(config.curation.pool)).entries()
    changed = [expired(entry, now) for entry in entries]
    if all(changed):
        what = ", ".join(sorted({name for name in changed if name})) or "it is empty"
        raise ConfigError(
            f"curation.pool = {config.curation.pool}: none of its {len(entries)} entries counts for "
            f"this configuration ({what}). Add to it with `dart-gui pool add`"
        )


def check_lora(config: Config, before: Config | None = None) -> None:
    """``before`` is the configuration of the run that is continued.

    Raises:
        ConfigError: an adapter would be trained on top of another one, or a run would go on with
            another kind of adapter.
    """
    if config.train.lora_rank:
        check_trains_anew(Path(config.model.path), config.train.lora_rank)
    for key in ("lora_rank", "lora_alpha", "lora_targets"):
        now = getattr(config.train, key)
        if before is not None and now != (then := getattr(before.train, key)):
            raise ConfigError(
                f"this run began with train.{key} = {then}, and its optimizer's state is of that: it "
                f"cannot go on with {now}. Start a new run"
            )


def check_browser(config: Config) -> str:
    """What the environments of the suite will run on."""
    return get_suite(config.env.suite).check_machine(config.env)


def dry_run_lines(config: Config) -> list[str]:
    """Comments for ``train --dry-run``: what containers need is no part of this installation."""
    if config.env.provider != "docker":
        return []
    try:
        found = check_browser(config)
    except DartError as error:
        found = f"not yet: {error}"
    return [f"# desktops: {found}"]


def check_port(host: str, port: int, *, service_url: str = "") -> None:
    """Nothing listens there. A port of 0 is chosen later, and a service elsewhere needs none."""
    if service_url or port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            what = (
                "is taken by another process" if error.errno == errno.EADDRINUSE else "is refused"
            )
            raise SetupError(
                f"port {port} on {host} {what} ({error.strerror}): choose another rollout.port, "
                "or 0 for a free one."
            ) from None


def check_vllm(config: Config) -> None:
    if config.rollout.engine == "vllm" and not (config.vllm.urls or config.rollout.url):
        find_executable(config.vllm.executable)


def check_token_file(config: Config) -> None:
    path = config.rollout.token_file
    if path and not os.access(path, os.R_OK):
        raise ConfigError(
            f"rollout.token_file {path} cannot be read. Give a file that holds the token of the "
            "rollout service, or leave it empty to have one generated."
        )
    if config.rollout.url and not path:
        raise ConfigError(
            f"rollout.url {config.rollout.url} is a service of its own, whose token is not known: "
            "give the file that holds it as rollout.token_file."
        )


def check_writable(folder: Path) -> None:
    """The nearest parent that exists can be written to; creates nothing."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise SetupError(
            f"run.dir {folder} cannot be created: {existing} is not a folder that you may write "
            "to. Choose another run.dir."
        )
