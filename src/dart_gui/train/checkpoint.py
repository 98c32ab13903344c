"""Durable checkpoints: a Hugging Face folder, the optimizer's state and where the run stood.

A checkpoint is written beside its name and renamed into place: it is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dart_gui.errors import DataError, boundary
from dart_gui.model.folder import is_adapter
from dart_gui.model.policy_model import PolicyModel
from dart_gui.train.checkpoint_files import OPTIMIZER_FILE, STATE_FILE
from dart_gui.train.trainer import Trainer

PARTIAL = ".partial"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerState:
    train_step: int
    num_updates: int
    elapsed_s: float  # seconds of training so far, over all launches of the run


def save_model(policy: PolicyModel, folder: Path) -> None:
    """Write the weights atomically as a Hugging Face folder.

    Raises:
        DataError: they cannot be written; nothing is left behind.
    """
    with _whole(folder) as partial:
        policy.save(partial)


def save_checkpoint(trainer: Trainer, state: TrainerState, folder: Path) -> None:
    """Raises ``DataError`` where it cannot be written; an older ``folder`` stays as it was."""
    with _whole(folder) as partial:
        trainer.policy.save(partial)
        torch.save(trainer.optimizer.state_dict(), partial / OPTIMIZER_FILE)
        (partial / STATE_FILE).write_text(json.dumps(asdict(state)))
        for file in partial.iterdir():
            _fsync(file)


def load_checkpoint(trainer: Trainer, folder: Path) -> TrainerState:
    """Put ``trainer`` where it was when ``folder`` was written.

    Raises:
        DataError: a part is missing or cannot be read.
    """
    hint = (
        f"the checkpoint {folder} is damaged. Restore it from a backup, or start a new run with "
        "model.path at an older checkpoint"
    )
    with boundary(DataError, hint):
        state = TrainerState(**json.loads((folder / STATE_FILE).read_text()))
        if is_adapter(folder) and not trainer.policy.trains_adapter:
            raise DataError(
                f"{folder} holds an adapter, and train.lora_rank = 0 trains whole weights: continue "
                "this run with the rank that it began with"
            )
        trainer.policy.load_weights(folder)
        saved = torch.load(folder / OPTIMIZER_FILE, map_location="cpu", weights_only=True)
        trainer.optimizer.load_state_dict(saved)
    trainer.num_updates = state.num_updates
    return state


def prune(folders: list[Path], keep: int) -> None:
    """Delete all but the newest ``keep`` of ``folders``, which are ordered oldest first."""
    for folder in folders[:-keep]:
        _remove(folder)
        for left in folder.parent.glob(".*.gone"):  # by a crash
            shutil.rmtree(left, ignore_errors=True)


def _remove(folder: Path) -> None:
    """By its name first: whoever opens the folder finds all of it or nothing."""
    doomed = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def discard_partial(parent: Path) -> None:
    """Delete what a killed trainer left half-written in ``parent``."""
    for partial in parent.glob(f".*{PARTIAL}"):
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name ``folder`` at the end, or is removed again.

    The libraries that write have errors of their own for a full disk.
    """
    hint = (
        f"cannot write {folder}, and nothing of it is left. Check that its disk has space (df -h) "
        "and that it can be written to, then continue with `dart-gui train --resume`"
    )
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    try:
        with boundary(DataError, hint):
            discard_partial(folder.parent)
            partial.mkdir(parents=True)
            yield partial
            _remove(folder)
            partial.rename(folder)
            _fsync(folder.parent)
    except DataError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
