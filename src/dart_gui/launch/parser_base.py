"""What all commands' arguments are made with. argparse and nothing else."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

USAGE = 2


class Parser(argparse.ArgumentParser):
    """Says in one paragraph what is wrong with the usage."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: error: {message}. See `{self.prog} --help`.\n")
        raise SystemExit(USAGE)


def command(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    *,
    summary: str,
    examples: str = "",
    overrides: bool = True,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary.replace("%", "%%"),
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(takes_overrides=overrides)
    parser.add_argument("--debug", action="store_true", help="show the stack trace of an error")
    return parser
