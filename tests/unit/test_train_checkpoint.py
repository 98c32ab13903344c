from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dart_gui.train.checkpoint import prune


def folders(root: Path, count: int) -> list[Path]:
    made = [root / f"step-{step:06d}" for step in range(1, count + 1)]
    for path in made:
        path.mkdir()
        (path / "model.safetensors").write_text("weights")
    return made


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    prune(folders(tmp_path, 5), 2)
    assert sorted(os.listdir(tmp_path)) == ["step-000004", "step-000005"]


def test_the_best_is_not_one_of_them(tmp_path: Path) -> None:
    best = tmp_path / "best-v000001"
    best.mkdir()
    (tmp_path / "best").symlink_to(best.name)
    folders(tmp_path, 3)
    prune(sorted(tmp_path.glob("step-*")), 1)
    assert sorted(os.listdir(tmp_path)) == ["best", "best-v000001", "step-000003"]


def test_what_a_crash_left_of_a_removal_is_removed_too(tmp_path: Path) -> None:
    left = tmp_path / ".step-000000.gone"
    left.mkdir()
    prune(folders(tmp_path, 3), 2)
    assert sorted(os.listdir(tmp_path)) == ["step-000002", "step-000003"]


def test_a_folder_loses_its_name_before_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that half of it is never taken for a whole one: neither by a reader nor after a crash."""
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # killed right before it
    prune(folders(tmp_path, 2), 1)
    assert sorted(os.listdir(tmp_path)) == [".step-000001.gone", "step-000002"]
