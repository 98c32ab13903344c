"""The options of ``dart-gui eval`` as a configuration."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence

from dart_gui.config import Config
from dart_gui.env.suites import get_suite
from dart_gui.errors import ConfigError
from dart_gui.launch.tryout import choose_model, parse_task

API_DEFAULTS = (
    "env.num_envs=4",
    "runner.num_slots=4",
    "runner.max_steps=15",
    "runner.max_parse_errors=3",
    "runner.episode_timeout_s=3600",
)
"""With ``--agent openai`` where no configuration is named: the configuration's own are for a small
model that answers at once."""

GRAMMARS: Mapping[str, str] = {
    "uitars": "ui-tars",
    "computer_use": "qwen3-computer-use",
    "computer_use_pixels": "qwen2.5-computer-use",
}
"""Short names for ``--grammar``; any other is the name of an agent itself."""

_API_KEYS: Mapping[str, str] = {
    "base_url": "api.base_url",
    "model": "api.model",
    "key_env": "api.key_env",
    "max_tokens": "api.max_tokens",
    "max_steps": "runner.max_steps",
}
_API_ONLY = (*_API_KEYS, "grammar", "repeats", "out")


def refuse_api_options(args: argparse.Namespace) -> None:
    """Raises ``ConfigError``: an option has no meaning without ``--agent openai``."""
    for name in _API_ONLY:
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} needs --agent openai")


def overrides_of(args: argparse.Namespace) -> list[str]:
    """The overrides that were given, then those that the short options stand for."""
    found = list(args.overrides)
    if args.suite is not None:
        found += [_override("env.suite", args.suite), "env.tasks=[]"]
    if args.parallel is not None:
        found += [f"env.num_envs={args.parallel}", f"runner.num_slots={args.parallel}"]
    return found


def api_config(args: argparse.Namespace) -> Config:
    """The configuration of ``--agent openai``.

    Raises:
        ConfigError: options contradict each other, or a value is refused.
    """
    for name in ("checkpoint", "random"):
        if getattr(args, name):
            raise ConfigError(f"--{name} is about models of ours, and --agent openai is not")
    overrides = overrides_of(args)
    for name, key in _API_KEYS.items():
        if (value := getattr(args, name)) is not None:
            overrides.append(_override(key, value))
    if args.grammar is not None:
        overrides.append(_override("agent.name", GRAMMARS.get(args.grammar, args.grammar)))
    has_config = args.config is not None or args.run is not None
    defaults = () if has_config else API_DEFAULTS
    config, _ = choose_model(args.config, args.run, [*defaults, *overrides])
    return with_tasks(config, args.tasks)


def with_tasks(config: Config, named: Sequence[str]) -> Config:
    """``config`` with the tasks of ``--tasks``; with its own where none is named.

    Raises:
        ConfigError: there is no such task.
    """
    names = [name.strip() for text in named for name in text.split(",") if name.strip()]
    if not names:
        return config
    suite = get_suite(config.env.suite)
    tasks = (
        list(suite.task_ids)
        if names == ["all"]
        else [parse_task(name, config.env.suite) for name in names]
    )
    return config.model_copy(update={"env": config.env.model_copy(update={"tasks": tasks})})


def _override(key: str, value: str | int) -> str:
    """Quoted, so that a model that is called 4.1 stays text."""
    return f"{key}={json.dumps(value)}"
