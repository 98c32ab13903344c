"""What makes a folder a model folder. Light: reads JSON, imports no torch."""

from __future__ import annotations

import json
from pathlib import Path

from dart_gui.errors import ConfigError

REQUIRED_FILES = ("config.json", "tokenizer.json", "preprocessor_config.json")
ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"


def check_model_folder(path: Path) -> None:
    """Raise ``ConfigError`` unless ``path`` holds a Qwen2.5-VL-architecture model with its weights."""
    wanted = (
        "Expected a Hugging Face folder of a Qwen2.5-VL-architecture model, such as "
        "models/tiny-agent or a download of ByteDance-Seed/UI-TARS-1.5-7B; set model.path."
    )
    if not path.is_dir():
        raise ConfigError(f"there is no model folder {path}. {wanted}")
    missing = [name for name in REQUIRED_FILES if not (path / name).is_file()]
    if missing:
        raise ConfigError(f"{path} is not a model folder: it lacks {', '.join(missing)}. {wanted}")
    if not any(path.glob("*.safetensors")):
        raise ConfigError(f"{path} holds no weights (*.safetensors). {wanted}")
    try:
        architectures = json.loads((path / "config.json").read_text()).get("architectures")
    except ValueError as error:
        raise ConfigError(f"{path / 'config.json'} is not valid JSON: {error}. {wanted}") from None
    if architectures != [ARCHITECTURE]:
        raise ConfigError(f"{path} holds a model of architecture {architectures}. {wanted}")
