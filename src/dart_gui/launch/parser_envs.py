"""Arguments of the commands about environments: ``env-server``, ``env``, ``osworld``."""

from __future__ import annotations

import argparse
from pathlib import Path

from dart_gui.launch.parser_base import Parser, command


def add_env_server(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = command(
        commands,
        "env-server",
        summary="desktops behind one address, for runs on this machine and others",
        examples=(
            "  dart-gui env-server                                    4 desktops on loopback\n"
            "  dart-gui env-server --host 0.0.0.0 --port 50003 --tokens tokens.toml --desktops 16\n"
            "  dart-gui env-server --provider docker --env.docker_image MY_IMAGE"
        ),
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path("/tmp/dart-env"),
        help="state and token (default %(default)s)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default loopback)"
    )
    parser.add_argument("--port", type=int, default=0, help="0 for a free one (default)")
    parser.add_argument("--provider", choices=("xvfb", "docker", "fake"), default="xvfb")
    parser.add_argument(
        "--desktops", type=int, default=4, metavar="N", help="leased at once at most"
    )
    parser.add_argument("--spares", type=int, default=1, metavar="N", help="booted besides those")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=720)
    parser.add_argument("--memory-mb", type=int, default=2048, help="limit of each desktop")
    parser.add_argument("--tokens", type=Path, metavar="FILE", help="TOML tables [[token]]")
    parser.add_argument(
        "--keep-desktops", action="store_true", help="leave leased desktops to the next server"
    )
    parser.add_argument(
        "--forward-host",
        default="",
        metavar="HOST",
        help="open a port per lease there, for published clients, which talk to the guest directly",
    )


def add_env(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = command(
        commands,
        "env",
        summary="check that a suite of tasks keeps the promises of an environment",
        examples=(
            "  dart-gui env check miniwob\n"
            "  dart-gui env check examples/own_suite/shop.py:SUITE\n"
            "  dart-gui env check my_package.tasks:SUITE --task my-suite/login --seed 7"
        ),
    )
    parser.add_argument("action", choices=("check",))
    parser.add_argument(
        "suite", metavar="SUITE", help="a name, package.module:object or folder/file.py:object"
    )
    parser.add_argument(
        "--task",
        action="append",
        default=[],
        metavar="TASK",
        help="check this one; may be repeated",
    )
    parser.add_argument("--all", action="store_true", help="check all tasks, not the default ones")
    parser.add_argument("--seed", type=int, default=0, help="instance to check (default 0)")


def add_osworld(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "osworld", help="files and lists of OSWorld's tasks", allow_abbrev=False
    )
    parser.set_defaults(debug=False)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    mirror = command(
        actions,
        "mirror",
        summary="fetch what the tasks download, so that episodes need no network",
        examples="  dart-gui osworld mirror OSWorld/evaluation_examples --cache data/osworld-cache\n\n"
        "exit code: 0 all is there, 1 some could not be fetched; what is there is not fetched again",
        overrides=False,
    )
    split = command(
        actions,
        "split",
        summary="write lists to train and to hold out, which share no file and no source",
        examples="  dart-gui osworld split OSWorld/evaluation_examples --out lists\n"
        "  dart-gui osworld split OSWorld/evaluation_examples --out lists --domain gimp --domain vlc",
        overrides=False,
    )
    for one in (mirror, split):
        one.add_argument(
            "tasks", type=Path, metavar="TASKS", help="evaluation_examples, or a list in it"
        )
    mirror.add_argument(
        "--cache", type=Path, required=True, metavar="DIR", help="env.osworld_cache"
    )
    mirror.add_argument(
        "--jobs", type=int, default=4, metavar="N", help="files at once (default 4)"
    )
    split.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the lists"
    )
    split.add_argument(
        "--share", type=float, default=0.2, help="of each domain's tasks to hold out (default 0.2)"
    )
    split.add_argument(
        "--domain", action="append", default=[], metavar="NAME", help="hold out whole domains"
    )
    split.add_argument(
        "--cache", type=Path, metavar="DIR", help="compare files by content where a mirror has them"
    )
    split.add_argument("--salt", default="", help="another text, another split")
