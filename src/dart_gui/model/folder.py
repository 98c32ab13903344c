"""What makes a folder a model folder. Light: reads JSON, imports no torch.

The weights of a model folder are its own, or those of another one and a LoRA adapter
(``adapter_files``); everything else that belongs to a model is in the folder itself either way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dart_gui.errors import ConfigError, boundary

REQUIRED_FILES = ("config.json", "tokenizer.json", "preprocessor_config.json")
ADAPTER_CONFIG = "adapter_config.json"  # peft's; marks a folder whose weights are an adapter
ARCHITECTURE = "Qwen2_5_VLForConditionalGeneration"
# These never make sense in a reply, and a sampled image pad would break every later forward.
UNSPEAKABLE = (
    "<|im_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


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
    if is_adapter(path):
        base = base_of(path)
        with boundary(ConfigError, f"the base of the adapter {path}"):
            if is_adapter(base):
                raise ConfigError(f"{path} is an adapter of {base}, which is an adapter itself")
            check_model_folder(base)


def is_adapter(path: Path) -> bool:
    """Whether the weights of this folder are a LoRA adapter of another folder's."""
    return (path / ADAPTER_CONFIG).is_file()


def base_of(path: Path) -> Path:
    """The folder with the weights: ``path``, or the base of the adapter that it holds.

    Raises:
        ConfigError: the adapter does not say which its base is.
    """
    if not is_adapter(path):
        return path
    with boundary(ConfigError, f"reading {path / ADAPTER_CONFIG}"):
        return Path(str(json.loads((path / ADAPTER_CONFIG).read_text())["base_model_name_or_path"]))


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """What an engine must know of the ids of a model folder."""

    eos_ids: frozenset[int]  # any of them ends a reply
    masked_token_ids: list[int]  # may not be sampled; sorted


def read_token_facts(path: Path) -> TokenFacts:
    """From the JSON files of a model folder, without its tokenizer.

    Raises:
        ConfigError: a file is missing or is not what it should be.
    """
    with boundary(ConfigError, f"reading the token ids of the model folder {path}"):
        tokenizer = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
        config = json.loads((path / "config.json").read_text())
        generation = json.loads((path / "generation_config.json").read_text())
        known = tokenizer["model"]["vocab"] | {
            token["content"]: token["id"] for token in tokenizer["added_tokens"]
        }
        vocab_size = (config.get("text_config") or config)["vocab_size"]
        eos = generation["eos_token_id"]
        eos_ids = frozenset([eos] if isinstance(eos, int) else eos)
        return TokenFacts(eos_ids, masked_token_ids(known, vocab_size, eos_ids))


def masked_token_ids(
    known: Mapping[str, Any], vocab_size: int, eos_ids: frozenset[int]
) -> list[int]:
    """Ids that no reply may hold: the unspeakable tokens, and rows of the head without a token."""
    unspeakable = [known[token] for token in UNSPEAKABLE if token in known]
    unused = range(len(known), vocab_size)
    return sorted({*unspeakable, *unused} - eos_ids)
