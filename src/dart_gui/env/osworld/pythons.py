"""Python that published steps run in the desktop: most press keys by ``python -c "import pyautogui"`` to
save what the agent has made before it is looked at.

A desktop that lacks the interpreter or a package would go on without a word and score an unsaved file.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from dart_gui.env.desktop.client import CommandResult, GuestClient
from dart_gui.env.desktop.tasks import SetupStep
from dart_gui.env.providers.sandbox import PATH
from dart_gui.errors import EnvError

PACKAGES = "pyautogui==0.9.54 pymsgbox==2.0.1 pytweening==1.2.0 pyscreeze==1.0.1"
INSTALL = (
    f"a desktop of this machine takes `pip install --no-deps {PACKAGES}`, for `python` into the "
    "environment that dart-gui runs in where the system has no such command, for `python3` into the "
    "system's Python, which needs python3-xlib and python3-pil too; a container's image must have them"
)
_NAMES = frozenset({"python", "python3"})
_PROBE_S = 30.0
_CALLED = re.compile(r"(?:^|[\s/;&|(])python3?(?=\s|$)")
_ABSENT = re.compile(r"^(?:ModuleNotFoundError: .*|.*python3?: .*not found)$", re.MULTILINE)
Imports = Mapping[str, frozenset[str]]
"""By interpreter the modules of no standard library that it is asked for."""


def imports_of(steps: Iterable[SetupStep]) -> Imports:
    """What programs that stand in the steps themselves import, and by which interpreter."""
    found: dict[str, frozenset[str]] = {}
    for step in steps:
        command = step.parameters.get("command")
        if isinstance(command, list) and command[:1] and command[0] in _NAMES:
            found.setdefault(command[0], frozenset())
            if command[1:2] == ["-c"] and len(command) > 2:
                found[command[0]] |= _imported(command[2])
    return found


def _imported(program: str) -> frozenset[str]:
    try:
        nodes = list(ast.walk(ast.parse(program)))
    except SyntaxError:  # with placeholders, of which none is part of an import
        return frozenset()
    names = [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    names += [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level]
    return frozenset({name.partition(".")[0] for name in names} - sys.stdlib_module_names)


async def require(client: GuestClient, wanted: Imports) -> None:
    """Ask each interpreter of the desktop for its modules; imported, as pyautogui opens the display.

    Raises:
        EnvError: the desktop lacks an interpreter or a module, or one cannot be imported.
    """
    for python, modules in wanted.items():
        program = "; ".join(f"import {module}" for module in sorted(modules)) or "pass"
        try:
            done = await client.execute([python, "-c", program])
        except EnvError as error:
            raise EnvError(f"steps of the task run {python}: {error}; {INSTALL}") from None
        if done.returncode != 0:
            said = done.error.strip().rpartition("\n")[2]
            raise EnvError(
                f"steps of the task run `{program}` with {python}, which fails in this desktop: {said}; "
                f"{INSTALL}"
            )


def check_done(command: Any, done: CommandResult) -> None:
    """Raises ``EnvError`` where a step failed since the desktop lacks an interpreter or a module."""
    text = command if isinstance(command, str) else " ".join(command)
    absent = _ABSENT.search(done.error) if done.returncode != 0 and _CALLED.search(text) else None
    if absent:
        raise EnvError(f"{text[:200]!r} ended with {done.returncode}: {absent[0]}; {INSTALL}")


def missing_here(wanted: Imports) -> list[str]:
    """What a desktop of this machine would lack, such as ``pyautogui for python3``."""
    missing = []
    for python, modules in wanted.items():
        # As ``session.provide_python`` has it.
        path = shutil.which(python, path=PATH) or (sys.executable if python == "python" else None)
        if path is None:
            missing.append(python)
            continue
        absent = _absent(path, tuple(sorted(modules)))
        missing += [f"{module} for {python}" for module in absent]
    return missing


@cache
def _absent(python: str, modules: tuple[str, ...]) -> list[str]:
    """Looked for and not imported: here may be no display."""
    program = (
        "import importlib.util as u, sys; "
        "print(*[name for name in sys.argv[1:] if u.find_spec(name) is None])"
    )
    command = [python, "-c", program, *modules]
    # Without what leads this process to its own modules: a desktop's programs have none of it.
    environ = {"PATH": PATH}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_PROBE_S, env=environ, check=False
    )
    return done.stdout.split() if done.returncode == 0 else list(modules)
