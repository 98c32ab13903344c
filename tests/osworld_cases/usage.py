"""Which metrics, getters and rules of tables the published tasks use together, and how many of the tasks
use nothing but what is exercised: ``python -m tests.osworld_cases.usage OSWorld/evaluation_examples``
prints the former as ``tests/data/osworld_usage.jsonl`` has it, and the latter on standard error."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dart_gui.env.osworld.tasks import OsworldFolder, getters_of, metrics_of, needs_of
from tests.osworld_cases import subjects

STORED = Path(__file__).resolve().parents[1] / "data" / "osworld_usage.jsonl"


def usage(folder: Path) -> list[dict[str, Any]]:
    """Of the default tasks; ``num_tasks`` of each kind."""
    tasks = OsworldFolder(folder)
    texts = [tasks.text(task_id) for task_id in tasks.task_ids]
    counts = Counter(json.dumps(_uses(text)) for text in texts if not needs_of(text))
    return [json.loads(kind) | {"num_tasks": number} for kind, number in sorted(counts.items())]


def _uses(text: Mapping[str, Any]) -> dict[str, list[str]]:
    options = text["evaluator"].get("options") or []
    every = options if isinstance(options, list) else [options]
    return {
        "metrics": sorted(set(metrics_of(text))),
        "getters": sorted({getter["type"] for getter in getters_of(text)}),
        "table_rules": sorted({r["type"] for o in every if o for r in o.get("rules", [])}),
    }


def stored() -> list[dict[str, Any]]:
    return [json.loads(line) for line in STORED.read_text(encoding="utf-8").splitlines()]


def exercised(kinds: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """(tasks that use nothing else than what is exercised, tasks)."""
    known = {
        "metrics": subjects.metrics(),
        "getters": subjects.getters(),
        "table_rules": subjects.table_rules(),
    }
    numbers = [
        (kind["num_tasks"], all(known[key] >= set(kind[key]) for key in known)) for kind in kinds
    ]
    return sum(n for n, is_known in numbers if is_known), sum(n for n, _ in numbers)


if __name__ == "__main__":
    found = usage(Path(sys.argv[1]))
    sys.stdout.writelines(f"{json.dumps(kind)}\n" for kind in found)
    known, every = exercised(found)
    sys.stderr.write(f"{known} of {every} tasks use only what is exercised\n")
