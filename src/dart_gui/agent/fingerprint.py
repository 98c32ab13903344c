"""Whether two agents turn the same episode into the same token ids."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dart_gui.agent.geometry import ImageLimits
from dart_gui.agent.prompts import SYSTEM_PROMPT, user_prompt
from dart_gui.agent.transforms import load_transform
from dart_gui.config import AgentConfig
from dart_gui.errors import ConfigError

_TOKENIZER_PARTS = ("model", "added_tokens", "normalizer", "pre_tokenizer")


def renderer_fingerprint(model_dir: Path, config: AgentConfig) -> str:
    """16 hex digits that differ where prompts or their token ids may differ.

    Taken from what the files mean, not from their bytes: a checkpoint has the fingerprint of the
    model that it was trained from, although its files were written anew.

    Raises:
        ConfigError: a file is no JSON, or ``model_dir`` is no model folder.
    """
    tokenizer = _read(model_dir / "tokenizer.json")
    parts = {
        "tokenizer": {name: tokenizer.get(name) for name in _TOKENIZER_PARTS},
        "template": _chat_template(model_dir),
        "images": repr(ImageLimits.from_model(model_dir)),
        "transform": load_transform(model_dir).__name__,
        "agent": config.model_dump(mode="json"),
        "prompt": SYSTEM_PROMPT + user_prompt("?", config.language),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _chat_template(model_dir: Path) -> str | None:
    """From the file of its own, or from where older folders keep it."""
    text = model_dir / "chat_template.jinja"
    if text.is_file():
        return text.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if template := _read(model_dir / name).get("chat_template"):
            return str(template)
    return None


def _read(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    return tree if isinstance(tree, dict) else {}
