"""``dart-gui merge``: a plain model folder, which every program for this architecture can load."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rich.console import Console

from dart_gui.errors import ConfigError
from dart_gui.launch import run_folder
from dart_gui.launch.tryout import find_checkpoint
from dart_gui.model.folder import base_of, check_model_folder, is_adapter


def run(
    console: Console, source: str, out: Path, runs_dir: str, *, checkpoint: str | None = None
) -> int:
    """Write the model of ``source``, a run or a model folder, to ``out``; 0.

    Raises:
        ConfigError: there is no such run, checkpoint or model, or there is something at ``out``.
        DataError: the adapter is not whole, its base has changed, or ``out`` cannot be written.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already: choose a new folder for the model")
    folder = _model_of(source, runs_dir, checkpoint)
    check_model_folder(folder)
    os.environ.setdefault("TQDM_DISABLE", "1")  # transformers draws a bar for each model
    from dart_gui.model.policy_model import PolicyModel
    from dart_gui.train.checkpoint import save_model

    base = base_of(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_model(PolicyModel(folder, device="cpu", dtype=_dtype(base)), out.absolute())
    what = f"{folder}, merged into {base}" if is_adapter(folder) else f"{folder}, which was plain"
    console.print(f"{out} is {what}", highlight=False, soft_wrap=True)
    return 0


def _model_of(source: str, runs_dir: str, checkpoint: str | None) -> Path:
    if checkpoint is None and (Path(source) / "config.json").is_file():
        return Path(source)
    folder = run_folder.find(source, runs_dir)
    path, _ = find_checkpoint(folder, checkpoint)
    if path is None:
        raise ConfigError(f"run {folder.run_id} has no checkpoint yet")
    return path


def _dtype(base: Path) -> str:
    """Of the base's weights, which the merged ones keep."""
    config = json.loads((base / "config.json").read_text())
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")
