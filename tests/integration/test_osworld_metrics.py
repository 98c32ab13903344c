"""OSWorld's own getters and metrics, from the package ``desktop-env``: `make test-osworld`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.osworld.downloads import Downloads
from dart_gui.env.osworld.evaluate import SCRIPT, EvaluatorSettings, evaluate
from dart_gui.env.osworld.tasks import parse
from dart_gui.env.providers.fake import FakeProvider
from dart_gui.errors import EnvError

pytestmark = [pytest.mark.osworld, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "data" / "osworld_metric_cases.py"
sys.path.insert(0, str(CASES.parent))
from osworld_metric_cases import METRICS  # noqa: E402

sys.path.remove(str(CASES.parent))


@pytest.fixture(scope="module")
def python() -> Path:
    made = ROOT / ".venv-osworld" / "bin" / "python"
    path = Path(os.environ.get("DART_OSWORLD") or made)
    if not path.is_file() or not (made.parents[1] / "dart-gui-osworld").is_file():
        pytest.skip("OSWorld's metrics are not installed: `make test-osworld` does so")
    return path


@pytest.fixture(scope="module")
def scores(python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    command = [python, "-s", CASES, SCRIPT, tmp_path_factory.mktemp("metrics")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("metric", METRICS)
def test_the_right_result_earns_1_and_a_near_miss_0(
    scores: dict[str, list[Any]], metric: str
) -> None:
    assert scores[metric] == [1.0, 0.0]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[GuestClient]:
    provider = FakeProvider(tmp_path / "desktops")
    await provider.start()
    made = GuestClient((await provider.create("one")).address)
    yield made
    await made.close()
    await provider.destroy("one")


async def reward(
    client: GuestClient, tmp_path: Path, python: Path, evaluator: dict[str, Any]
) -> float:
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    task = parse({"instruction": "x", "evaluator": evaluator}, task_id="osworld/os/a")
    settings = EvaluatorSettings(python=python, timeout_s=200, memory_mb=8192)
    downloads = Downloads(tmp_path / "cache", offline=True)
    return await evaluate(client, task, scratch=scratch, downloads=downloads, settings=settings)


def rule(**rules: Any) -> dict[str, Any]:
    return {"type": "rule", "rules": rules}


async def test_getters_reach_the_desktop_through_the_door(
    client: GuestClient, tmp_path: Path, python: Path
) -> None:
    await client.write_file("a.txt", b"hello")
    evaluator = {
        "func": ["check_include_exclude", "file_contains", "exact_match", "exact_match"],
        "result": [
            {"type": "vm_command_line", "command": "cat a.txt", "shell": True},
            {"type": "vm_file", "path": "a.txt", "dest": "a.txt"},
            {"type": "vm_screen_size"},
            {"type": "vm_command_error", "command": "echo bad >&2", "shell": True},
        ],
        "expected": [
            rule(include=["hello"], exclude=["bye"]),
            rule(expected=["hell"]),
            rule(expected={"width": 320, "height": 200}),
            rule(expected="bad\n"),
        ],
    }
    assert await reward(client, tmp_path, python, evaluator) == 1.0
    # A file that the agent did not make, among others that are right.
    evaluator["result"][1] = {"type": "vm_file", "path": "b.txt", "dest": "b.txt"}  # type: ignore[index]
    assert await reward(client, tmp_path, python, evaluator) == 0.0


async def test_a_metric_that_crashes_is_not_a_zero(
    client: GuestClient, tmp_path: Path, python: Path
) -> None:
    await client.write_file("a.docx", b"no document")
    result = {"type": "vm_file", "path": "a.docx", "dest": "a.docx"}
    evaluator = {"func": "compare_pptx_files", "result": result, "expected": result}
    with pytest.raises(EnvError, match="evaluation of osworld/os/a failed"):
        await reward(client, tmp_path, python, evaluator)
