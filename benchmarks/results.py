"""Where results go, and what they say of the machine and of how they were made."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dart_gui.env.browser.chromium import find_chromium, version_of
from dart_gui.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"


def machine() -> dict[str, Any]:
    """What figures depend on; no names and no dates."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "architecture": platform.machine(),
        "memory_gib": round(memory / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "browser": version_of(find_chromium()),
    }


def describe(facts: dict[str, Any]) -> str:
    """One sentence of :func:`machine`."""
    return (
        f"{facts['cores']} cores ({facts['architecture']}), {facts['memory_gib']} GiB of memory, "
        f"{facts['system']}, Python {facts['python']}, {facts['browser']}."
    )


def command(arguments: Sequence[str] | None = None) -> str:
    """The command that is running, as one types it at the root of the repository."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = (module.name if module else "benchmarks").removesuffix(".__main__")
    rest = sys.argv[1:] if arguments is None else arguments
    return shlex.join([".venv/bin/python", "-m", name, *rest])


def save(out: Path, name: str, values: dict[str, Any], text: str) -> Path:
    """``name.json`` and ``name.md`` in ``out``, whole or not at all; the latter's path."""
    write_whole(out / f"{name}.json", json.dumps(values, indent=1) + "\n")
    write_whole(out / f"{name}.md", text.rstrip() + "\n")
    return out / f"{name}.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, align: str = "") -> str:
    """A Markdown table; the first column left, the others right unless ``align`` (l, r) says else."""
    align = align or "l" + "r" * (len(head) - 1)
    rule = ["---:" if each == "r" else "---" for each in align]
    lines = [head, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verdict(met: bool) -> str:
    return "**met**" if met else "**missed**"
