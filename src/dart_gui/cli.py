"""The command line. Imports nothing heavy: each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dart_gui.errors import AuthError, ConfigError, DartError
from dart_gui.launch.parser import DEFAULT_CONFIG, MODULES, build_parser
from dart_gui.types import WeightsRef

if TYPE_CHECKING:
    from dart_gui.config import Config

_OVERRIDE = re.compile(r"--([A-Za-z_]\w*\.[\w.-]+)(?:=(.*))?", re.DOTALL)
_INTERRUPTED = 130
_FAILED = 1
_CANNOT_CHECK = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    ``db check`` has its own: 1 is a finding, 2 that it could not check."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    arguments, overrides = split_overrides(arguments, parser)
    args = parser.parse_args(arguments)
    args.overrides = overrides
    if overrides and not args.takes_overrides:
        parser.error(f"{args.command} takes no overrides, got --{overrides[0]}")
    try:
        return int(_COMMANDS[args.command](args))
    except DartError as error:
        if args.debug:
            raise
        with contextlib.suppress(OSError):  # a log on a full disk: the exit code still tells
            sys.stderr.write(f"dart-gui: error: {error}\n")
        return _exit_code(args, error)
    except KeyboardInterrupt:
        if args.debug:
            raise
        return _INTERRUPTED


def split_overrides(
    arguments: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[list[str], list[str]]:
    """(what argparse is to see, ``section.key=value`` overrides).

    Done before argparse, which would take the value of an option that it does not know for a
    positional argument.
    """
    rest: list[str] = []
    overrides: list[str] = []
    words = iter(arguments)
    for word in words:
        match = _OVERRIDE.fullmatch(word)
        if match is None:
            rest.append(word)
            continue
        key, value = match.groups()
        if value is None:
            value = next(words, None)
        if value is None or value.startswith("--"):
            parser.error(f"--{key} needs a value, as in --{key} VALUE or --{key}=VALUE")
        overrides.append(f"{key}={value}")
    return rest, overrides


def _exit_code(args: argparse.Namespace, error: DartError) -> int:
    """The supervisor does not start a module again that says that its configuration is wrong."""
    if args.command in MODULES and isinstance(error, ConfigError | AuthError):
        from dart_gui.launch.process import PERMANENT_EXIT_CODE

        return PERMANENT_EXIT_CODE
    return _CANNOT_CHECK if args.command == "db" else _FAILED


# --- the commands ------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> int:
    from dart_gui.launch import commands

    console = _console()
    if args.config is None and args.resume is None:
        raise ConfigError(
            f"name the configuration of the new run, as in `dart-gui train {DEFAULT_CONFIG}`, or "
            "continue one with `dart-gui train --resume`"
        )
    if args.dry_run:
        return commands.show_config(console, args.config, args.overrides)
    if args.resume is not None:
        return commands.resume_training(console, args.resume, args.config, args.overrides)
    return commands.start_training(
        console, args.config, args.overrides, name=args.name, run_dir=args.run_dir
    )


def _eval(args: argparse.Namespace) -> int:
    from dart_gui.launch import eval_options, tryout

    if args.agent == "openai":
        return _eval_api(args)
    eval_options.refuse_api_options(args)
    overrides = eval_options.overrides_of(args)
    if args.episodes is not None:
        overrides.append(f"eval.num_episodes={args.episodes}")
    config, train_step = tryout.choose_model(
        _config_path(args), args.run, overrides, checkpoint=args.checkpoint
    )
    temperature = 0.0 if args.greedy else args.temperature
    if temperature is None:
        temperature = config.eval.temperature
    return tryout.run_eval(
        _console(),
        eval_options.with_tasks(config, args.tasks),
        temperature=tryout.check_temperature(temperature),
        use_random=args.random,
        train_step=train_step,
    )


def _eval_api(args: argparse.Namespace) -> int:
    from dart_gui.launch import api_eval, eval_options, tryout

    config = eval_options.api_config(args)
    temperature = 0.0 if args.greedy else args.temperature
    if temperature is None:
        temperature = config.eval.temperature
    return api_eval.run_api_eval(
        _console(),
        config,
        api_eval.ApiJob(
            temperature=tryout.check_temperature(temperature),
            num_episodes=args.episodes,
            num_repeats=1 if args.repeats is None else args.repeats,
            out=args.out,
        ),
    )


def _play(args: argparse.Namespace) -> int:
    from dart_gui.launch import tryout
    from dart_gui.types import Task

    config, _ = tryout.choose_model(
        _config_path(args), args.run, args.overrides, checkpoint=args.checkpoint
    )
    temperature = 0.0 if args.greedy else args.temperature
    if temperature is None:
        temperature = config.eval.temperature
    return tryout.run_play(
        _console(),
        config,
        Task(task_id=tryout.parse_task(args.task, config.env.suite), seed=args.seed),
        temperature=tryout.check_temperature(temperature),
        use_random=args.random,
        out_dir=args.out,
    )


def _config_path(args: argparse.Namespace) -> str | None:
    if args.config is None and args.run is None and Path(DEFAULT_CONFIG).is_file():
        return DEFAULT_CONFIG
    return args.config


def _doctor(args: argparse.Namespace) -> int:
    from dart_gui import config as config_module
    from dart_gui.launch import doctor

    return doctor.run(_console(), config_module.load(args.config, args.overrides))


def _report(args: argparse.Namespace) -> int:
    from dart_gui.launch import commands

    return commands.run_report(_console(), args.run, args.overrides)


def _merge(args: argparse.Namespace) -> int:
    from dart_gui.launch import merge
    from dart_gui.launch.commands import runs_dir

    where = runs_dir(args.overrides)
    return merge.run(_console(), args.source, args.out, where, checkpoint=args.checkpoint)


def _db(args: argparse.Namespace) -> int:
    from dart_gui.launch import db_check, run_folder
    from dart_gui.launch.commands import runs_dir

    folder = run_folder.find(args.run, runs_dir(args.overrides))
    return db_check.run(_console(), folder, folder.load_config(), fast=args.fast)


def _osworld(args: argparse.Namespace) -> int:
    from dart_gui.launch import osworld

    if args.action == "mirror":
        return osworld.run_mirror(_console(), args.tasks, args.cache, jobs=args.jobs)
    return osworld.run_split(
        _console(),
        args.tasks,
        args.out,
        share=args.share,
        domains=args.domain,
        salt=args.salt,
        cache=args.cache,
    )


def _tasks(args: argparse.Namespace) -> int:
    from dart_gui.launch import commands

    return commands.list_tasks(_console(), args.suite)


def _env_server(args: argparse.Namespace) -> int:
    from dart_gui.launch.env_server import ServerOptions, run

    return run(
        ServerOptions(
            folder=args.dir,
            host=args.host,
            port=args.port,
            provider=args.provider,
            max_desktops=args.desktops,
            spares=args.spares,
            width=args.width,
            height=args.height,
            memory_mb=args.memory_mb,
            tokens=args.tokens,
            keep_desktops=args.keep_desktops,
            forward_host=args.forward_host,
            overrides=args.overrides,
        )
    )


def _pool(args: argparse.Namespace) -> int:
    from dart_gui.launch import pooling

    config = _config_of(args)
    if args.action == "list":
        return pooling.list_pool(_console(), args.pool, config)
    if args.script is not None:
        return pooling.add_scripted(_console(), args.pool, config, args.script)
    if args.from_run is not None:
        return pooling.add_run(_console(), args.pool, config, args.from_run)
    if args.folder is not None:
        return pooling.add_published(_console(), args.pool, config, args.folder, args.env_version)
    raise ConfigError(
        "say where the successes come from: --script N, --from-run RUN or --folder DIR"
    )


def _sft(args: argparse.Namespace) -> int:
    from dart_gui.launch import pooling

    config = _config_of(args)
    return pooling.sft(_console(), args.pool, args.out, config, steps=args.steps, batch=args.batch)


def _config_of(args: argparse.Namespace) -> Config:
    from dart_gui import config as config_module

    path = args.config
    if path is None and Path(DEFAULT_CONFIG).is_file():
        path = DEFAULT_CONFIG
    return config_module.load(path, args.overrides)


def _env(args: argparse.Namespace) -> int:
    from dart_gui import config as config_module
    from dart_gui.launch import env_check

    config = config_module.load(None, [*args.overrides, f"env.suite={args.suite}"])
    return env_check.run_check(_console(), config.env, args.task, use_all=args.all, seed=args.seed)


def _config(args: argparse.Namespace) -> int:
    from dart_gui.launch import commands

    return commands.show_config(_console(), args.config, args.overrides)


def _migrate(args: argparse.Namespace) -> int:
    from dart_gui.compat.migrate import migrate

    sys.stdout.write(migrate(args.yaml, args.env).toml())
    return 0


def _rollout(args: argparse.Namespace) -> int:
    run_dir = _enter_module(args)
    from dart_gui.rollout.main import run

    return run(run_dir)


def _runner(args: argparse.Namespace) -> int:
    run_dir = _enter_module(args)
    from dart_gui.runner.main import run

    return run(run_dir)


def _trainer(args: argparse.Namespace) -> int:
    run_dir = _enter_module(args)
    from dart_gui.train.main import run

    return run(run_dir)


def _evaluator(args: argparse.Namespace) -> int:
    run_dir = _enter_module(args)
    from dart_gui.launch.evaluation import run
    from dart_gui.launch.plan import EvalJob

    job = EvalJob(
        phase=args.phase,
        temperature=args.temperature,
        train_step=args.train_step,
        weights=_weights(args),
    )
    return run(run_dir, job)


def _weights(args: argparse.Namespace) -> WeightsRef | None:
    if args.weights is None:
        return None
    return WeightsRef(policy_version=args.policy_version, path=str(args.weights))


def _player(args: argparse.Namespace) -> int:
    run_dir = _enter_module(args)
    from dart_gui.launch.playing import run
    from dart_gui.types import Task

    return run(
        run_dir,
        Task(task_id=args.task, seed=args.seed),
        temperature=args.temperature,
        use_random=args.random,
        out_dir=args.out,
    )


def _enter_module(args: argparse.Namespace) -> Path:
    """Its folder, absolute, once no other process of this module works in it. Checked before a
    module's imports, which take seconds."""
    run_dir: Path = args.run_dir
    if not (run_dir / "config.toml").is_file():
        raise ConfigError(
            f"{run_dir} is not the folder of a run: it has no config.toml. `dart-gui train CONFIG` "
            "makes one."
        )
    from dart_gui.launch.orphan import end_with_supervisor
    from dart_gui.launch.predecessor import wait_for_predecessor

    end_with_supervisor()
    wait_for_predecessor(run_dir, args.command)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    return run_dir.absolute()


def _console():  # type: ignore[no-untyped-def]
    from rich.console import Console

    return Console()


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "train": _train,
    "eval": _eval,
    "play": _play,
    "doctor": _doctor,
    "report": _report,
    "merge": _merge,
    "db": _db,
    "tasks": _tasks,
    "env": _env,
    "config": _config,
    "migrate": _migrate,
    "env-server": _env_server,
    "osworld": _osworld,
    "pool": _pool,
    "sft": _sft,
    "rollout": _rollout,
    "runner": _runner,
    "trainer": _trainer,
    "evaluator": _evaluator,
    "player": _player,
}
