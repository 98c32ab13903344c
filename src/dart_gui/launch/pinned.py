"""Weights that are kept for an evaluation while training, and the best of them.

    pinned/v000012-step-000011/     to be evaluated, or being evaluated
    checkpoints/best                symlink to best-v000012/, which holds best.json too

A pin is made of hard links (copies, where the file system has none), so the trainer may delete its
own folder at any time. The pins are the list of what is left to evaluate: an evaluation that was
killed is found here and started again. Everything here may be killed at any point and called again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dart_gui.errors import DataError, boundary
from dart_gui.files import write_whole
from dart_gui.launch.progress import Event
from dart_gui.launch.run_folder import RunFolder
from dart_gui.types import WeightsRef

BEST = "best"
BEST_FILE = "best.json"
_PIN = re.compile(r"v(\d+)-step-(\d+)")
_OF_THE_TRAINER = ("optimizer.pt", "state.json")  # not part of the model


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    path: Path
    policy_version: int
    train_step: int


def pins(folder: RunFolder) -> list[Pin]:
    """Oldest first."""
    found = []
    for path in sorted(folder.pinned.glob("v*")):
        if match := _PIN.fullmatch(path.name):
            version, train_step = map(int, match.groups())
            found.append(Pin(path=path, policy_version=version, train_step=train_step))
    return sorted(found, key=lambda each: each.policy_version)


def pin(folder: RunFolder, weights: WeightsRef, *, train_step: int) -> Pin | None:
    """Keep these weights, whole or not at all; None where they are gone already.

    Raises:
        DataError: there is no space, or the folder cannot be written.
    """
    version = weights.policy_version
    path = folder.pinned / f"v{version:06d}-step-{train_step:06d}"
    draft = folder.pinned / f".{path.name}.partial"
    try:
        for left in folder.pinned.glob(".*"):  # by a crash
            shutil.rmtree(left, ignore_errors=True)
        draft.mkdir(parents=True)
        _link_all(Path(weights.path), draft)
        draft.rename(path)
    except FileNotFoundError:
        shutil.rmtree(draft, ignore_errors=True)
        return None
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise DataError(
            f"cannot keep policy version {version} from {weights.path} in {folder.pinned}: "
            f"{error.strerror or error}. Check the free space and the permissions."
        ) from None
    return Pin(path=path, policy_version=version, train_step=train_step)


def _link_all(source: Path, target: Path) -> None:
    """Links by the descriptor of the folder: one that is replaced meanwhile is not mixed with its
    successor."""
    descriptor = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in os.listdir(descriptor):
            if name not in _OF_THE_TRAINER:
                _link(source, name, target / name, descriptor)
    finally:
        os.close(descriptor)


def _link(source: Path, name: str, target: Path, descriptor: int) -> None:
    try:
        os.link(name, target, src_dir_fd=descriptor, follow_symlinks=True)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source / name, target)


def release(folder: RunFolder, one: Pin) -> None:
    """Forget a pin: by its name first, so that half of it is never taken for a whole one."""
    doomed = folder.pinned / f".{one.path.name}.gone"
    shutil.rmtree(doomed, ignore_errors=True)
    one.path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def keep_best(folder: RunFolder, one: Pin, event: Event) -> None:
    """Make the pinned weights ``checkpoints/best``, whole at every moment.

    Raises:
        DataError: there is no space, or the folder cannot be written.
    """
    with boundary(DataError, f"keeping policy version {one.policy_version} as {folder.best}"):
        write_whole(one.path / BEST_FILE, json.dumps(_facts(one, event), indent=1) + "\n")
        folder.best.parent.mkdir(exist_ok=True)
        one.path.rename(folder.best.with_name(_best_name(one.policy_version)))
        point_best_at(folder, one.policy_version)


def point_best_at(folder: RunFolder, policy_version: int) -> bool:
    """Swap the symlink and remove the others; False where that version is not there."""
    target = folder.best.with_name(_best_name(policy_version))
    if not target.is_dir():
        return False
    if not folder.best.is_symlink() or os.readlink(folder.best) != target.name:
        draft = folder.best.with_name(f".{BEST}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        draft.symlink_to(target.name)
        draft.replace(folder.best)
    for other in folder.best.parent.glob(f"{BEST}-v*"):
        if other != target:
            shutil.rmtree(other, ignore_errors=True)
    return True


def read_best(folder: RunFolder) -> Mapping[str, Any]:
    """``best.json``; empty where no best is kept."""
    try:
        value = json.loads((folder.best / BEST_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _best_name(policy_version: int) -> str:
    return f"{BEST}-v{policy_version:06d}"


def _facts(one: Pin, event: Event) -> dict[str, Any]:
    keys = ("success_rate", "low", "high", "num_episodes", "temperature", "phase", "at")
    return {
        "policy_version": one.policy_version,
        "train_step": one.train_step,
        **{key: event.get(key) for key in keys},
    }
