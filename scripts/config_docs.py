"""Write docs/configuration.md from the configuration's own docstrings.

.venv/bin/python scripts/config_docs.py           # writes the file
.venv/bin/python scripts/config_docs.py --check   # fails where the file is not current
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
import textwrap
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dart_gui.config import Config

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
COMMAND = ".venv/bin/python scripts/config_docs.py"

HEAD = f"""\
<!-- Written by `{COMMAND}` (or `make docs`) from src/dart_gui/config/: change it there. -->

# Configuration

A run is configured by one TOML file and by overrides on the command line:

    dart-gui train configs/miniwob-tiny.toml --train.lr 1e-4 --env.tasks '["miniwob/click-test"]'

Whatever the file does not say has the default of the tables below. An unknown key is refused, and
the error names the nearest known one. `--dry-run` prints the resolved tree and starts nothing;
every run keeps its own resolved copy in `runs/<run_id>/config.toml`.
"""
TAIL = """\
## Checked across sections

The configuration is refused, with the reason, where values contradict each other:

"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write docs/configuration.md.")
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 if it differs")
    options = parser.parse_args(arguments)
    text = render()
    if not options.check:
        DOCUMENT.write_text(text, encoding="utf-8")
        return 0
    if DOCUMENT.exists() and DOCUMENT.read_text(encoding="utf-8") == text:
        return 0
    print(f"{DOCUMENT} is not current: run `{COMMAND}`", file=sys.stderr)
    return 1


def render() -> str:
    sections = "\n".join(section(name, field) for name, field in Config.model_fields.items())
    checks = "\n".join(f"- {check}" for check in cross_checks())
    return f"{HEAD}\n{sections}\n{TAIL}{checks}\n"


def section(name: str, field: FieldInfo) -> str:
    model = field.annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    rows = "\n".join(row(name, key, value) for key, value in model.model_fields.items())
    head = "| key | type | default | meaning |\n|---|---|---|---|"
    return f"## `[{name}]`\n\n{head}\n{rows}\n"


def row(section_name: str, key: str, field: FieldInfo) -> str:
    default = json.dumps(field.get_default(call_default_factory=True))
    meaning = " ".join((field.description or "").split()).replace("``", "`")
    kind = type_text(field)
    cells = (f"`{section_name}.{key}`", kind, f"`{default}`", meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def type_text(field: FieldInfo) -> str:
    """The type in words, with its bounds: ``int >= 1``, ``"auto" or "cpu"``."""
    bounds = " and ".join(bound_texts(field.metadata))
    text = plain_type(field.annotation)
    return f"{text}, {bounds}" if bounds else text


def plain_type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (list, tuple):
        items = ", ".join(dict.fromkeys(plain_type(item) for item in arguments))
        count = f" of {len(arguments)}" if origin is tuple else " of"
        return f"list{count} {items}"
    return str(getattr(annotation, "__name__", annotation))


def bound_texts(metadata: Sequence[Any]) -> Iterator[str]:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    for item in metadata:
        for name, sign in signs.items():
            if (bound := getattr(item, name, None)) is not None:
                yield f"{sign} {bound:g}"


def cross_checks() -> Iterator[str]:
    """The conditions of ``Config._cross_checks``, each as the code has it."""
    # Pydantic keeps the undecorated function of a validator in its own registry.
    (validator,) = Config.__pydantic_decorators__.model_validators.values()
    tree = ast.parse(textwrap.dedent(inspect.getsource(validator.func)))
    for node in ast.walk(tree):
        if isinstance(node, ast.If):
            yield f"`{ast.unparse(node.test).replace('self.', '')}`"


if __name__ == "__main__":
    sys.exit(main())
