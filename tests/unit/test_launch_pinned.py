from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from dart_gui.config import Config
from dart_gui.errors import ConfigError, DataError
from dart_gui.launch import pinned, run_folder
from dart_gui.launch.pinned import Pin, keep_best, pin, pins, point_best_at, read_best, release
from dart_gui.launch.run_folder import RunFolder
from dart_gui.launch.tryout import find_checkpoint
from dart_gui.types import WeightsRef


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return run_folder.create(Config(), tmp_path / "r1")


def weights(folder: RunFolder, version: int) -> WeightsRef:
    path = folder.path / "weights" / f"step-{version:06d}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.safetensors").write_text(f"weights {version}")
    (path / "config.json").write_text("{}")
    (path / "optimizer.pt").write_text("the trainer's own")
    return WeightsRef(policy_version=version, path=str(path))


def pinned_at(folder: RunFolder, version: int) -> Pin:
    made = pin(folder, weights(folder, version), train_step=version - 1)
    assert made is not None
    return made


def evaluated(rate: float) -> dict[str, object]:
    return {"phase": "during", "temperature": 1.0, "success_rate": rate, "num_episodes": 100}


def test_a_pin_outlives_the_weights_that_it_keeps(folder: RunFolder) -> None:
    one = pinned_at(folder, 12)
    shutil.rmtree(folder.path / "weights")
    assert (one.path / "model.safetensors").read_text() == "weights 12"
    assert sorted(path.name for path in one.path.iterdir()) == ["config.json", "model.safetensors"]
    assert pins(folder) == [one]
    assert (one.policy_version, one.train_step) == (12, 11)


def test_pins_take_no_space_where_the_file_system_has_links(folder: RunFolder) -> None:
    one = pinned_at(folder, 3)
    source = folder.path / "weights" / "step-000003" / "model.safetensors"
    assert (one.path / "model.safetensors").samefile(source)


def test_without_links_the_weights_are_copied(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    one = pinned_at(folder, 3)
    assert (one.path / "model.safetensors").read_text() == "weights 3"


def test_weights_that_are_gone_are_not_pinned(folder: RunFolder) -> None:
    gone = WeightsRef(policy_version=3, path=str(folder.path / "weights" / "nothing"))
    assert pin(folder, gone, train_step=2) is None
    assert list(folder.pinned.iterdir()) == []


def test_a_full_disk_is_an_error_that_leaves_nothing(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "copy2", refuse)
    with pytest.raises(DataError, match=r"cannot keep policy version 3.*No space left"):
        pin(folder, weights(folder, 3), train_step=2)
    assert pins(folder) == []
    assert list(folder.pinned.iterdir()) == []


def test_half_a_pin_is_none(folder: RunFolder) -> None:
    left = folder.pinned / ".v000003-step-000002.partial"
    left.mkdir(parents=True)
    assert pins(folder) == []
    assert [one.policy_version for one in (pinned_at(folder, 4), pinned_at(folder, 100))] == [
        4,
        100,
    ]
    assert [one.policy_version for one in pins(folder)] == [4, 100]
    assert not left.exists()


def test_the_best_is_a_model_folder_with_its_figure(folder: RunFolder) -> None:
    keep_best(folder, pinned_at(folder, 12), evaluated(0.5))
    assert pins(folder) == []
    assert (folder.best / "model.safetensors").read_text() == "weights 12"
    best = json.loads((folder.best / "best.json").read_text())
    assert (best["policy_version"], best["train_step"], best["success_rate"]) == (12, 11, 0.5)
    keep_best(folder, pinned_at(folder, 20), evaluated(0.6))
    assert read_best(folder)["policy_version"] == 20
    kept = [path.name for path in folder.best.parent.glob("best*")]
    assert sorted(kept) == ["best", "best-v000020"]


def test_a_best_that_was_cut_off_is_finished_later(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_best(folder, pinned_at(folder, 12), evaluated(0.5))
    monkeypatch.setattr(pinned, "point_best_at", lambda *_: False)  # killed right before it
    keep_best(folder, pinned_at(folder, 20), evaluated(0.6))
    monkeypatch.undo()
    assert read_best(folder)["policy_version"] == 12, "the old one, whole"
    assert point_best_at(folder, 20)
    assert read_best(folder)["policy_version"] == 20
    assert not point_best_at(folder, 21)
    assert read_best(folder)["policy_version"] == 20


def test_a_released_pin_is_gone(folder: RunFolder) -> None:
    release(folder, pinned_at(folder, 12))
    assert list(folder.pinned.iterdir()) == []


def test_the_best_checkpoint_is_found_by_name(folder: RunFolder) -> None:
    assert find_checkpoint(folder, None) == (None, 0)
    with pytest.raises(ConfigError, match=r"has no checkpoint best; it has: none.*eval\.every"):
        find_checkpoint(folder, "best")
    for step in (10, 20):
        (folder.path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    keep_best(folder, pinned_at(folder, 12), evaluated(0.5))
    path, train_step = find_checkpoint(folder, "best")
    assert path is not None
    assert (path.name, train_step) == ("best-v000012", 11)
    assert find_checkpoint(folder, None)[1] == 20
    assert find_checkpoint(folder, "step-000010")[1] == 10
    with pytest.raises(ConfigError, match="it has: step-000010, step-000020"):
        find_checkpoint(folder, "step-000030")
