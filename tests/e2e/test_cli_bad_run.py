"""Runs that cannot be continued: one paragraph on the command line, exit code 1, nothing started."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dart_gui import config as config_module
from dart_gui.data.manager import DataManager
from dart_gui.launch import run_folder
from dart_gui.launch.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with which nothing is wrong, as far as the checks before a start can tell."""
    model, browser = tmp_path / "model", tmp_path / "chromium-headless-shell"
    model.mkdir()
    architecture = {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}
    (model / "config.json").write_text(json.dumps({**architecture, "model_type": "qwen2_5_vl"}))
    for name in ("tokenizer.json", "preprocessor_config.json", "model.safetensors"):
        (model / name).write_text("{}")
    browser.write_text("#!/bin/sh\n")
    browser.chmod(0o755)
    config = config_module.from_dict(
        {
            "model": {"path": str(model)},
            "env": {"browser": str(browser)},
            "run": {"dir": str(tmp_path / "runs")},
        },
        source="test",
    )
    folder = run_folder.create(config, tmp_path / "runs" / "r1")
    DataManager.open(folder.path, config).close()
    return folder


def newer(ledger: Path) -> None:
    with sqlite3.connect(ledger) as conn:
        conn.execute("UPDATE ledger_meta SET value = '99' WHERE name = 'schema_version'")
    conn.close()


def other_file(ledger: Path) -> None:
    ledger.write_bytes(b"not a database at all" * 400)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            newer,
            ["schema version 99, this dart-gui knows", "open it with the version", "data.ledger"],
        ),
        (other_file, ["file is not a database"]),
    ],
)
def test_a_ledger_that_is_not_ours(
    run: RunFolder, spoil: Callable[[Path], None], words: list[str]
) -> None:
    spoil(run.path / "ledger.sqlite")
    before = sorted(run.path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "dart_gui", "train", "--resume", str(run.path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("dart-gui: error: the ledger ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert sorted(run.path.rglob("*")) == before, "nothing was started"
