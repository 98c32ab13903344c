"""LoRA adapters on disk: which folder is one, of which base, and whether it is whole. Without torch.

An adapter folder is a model folder (tokenizer, image limits, ``config.json``) whose weights are an
adapter in peft's format, ``adapter_config.json`` and ``adapter_model.safetensors``, and a reference to
its base: the path in peft's ``base_model_name_or_path``, the digest of its weights in
``dart_adapter.json``. With the base's weight W, the policy has W + alpha / r * B A
(arXiv 2106.09685). Whatever peft can do besides is refused: nobody here would compute it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dart_gui.errors import ConfigError, DataError, boundary
from dart_gui.model.folder import ADAPTER_CONFIG, base_of, check_model_folder, is_adapter
from dart_gui.model.weight_files import Shapes, file_shapes, read_header

ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE_FILE = "dart_adapter.json"
LAYERS = "model.language_model.layers"  # as the modules of the network are called
PEFT_PREFIX = "base_model.model."
BLOCK_OF: Mapping[str, str] = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
# Of adapter_config.json: what must not be set, since it means other arithmetic than the above.
_FOREIGN = (
    "use_dora",
    "use_rslora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layer_replication",
    "alora_invocation_tokens",
    "use_bdlora",
    "use_qalora",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    folder: Path
    base: Path
    base_digest: str  # ``sample_digest`` of the base's weights
    rank: int
    alpha: float
    targets: tuple[str, ...]  # sorted

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank


def read_adapter(folder: Path) -> Adapter:
    """What the adapter in ``folder`` is, once its files are whole and of its base's dimensions.

    Raises:
        DataError: a file is missing or cut off, tensors are missing or of another rank or shape than
            ``adapter_config.json`` and ``config.json`` say, or it is no plain LoRA.
    """
    try:
        check_model_folder(folder)
        base = base_of(folder)
    except ConfigError as error:
        raise DataError(f"cannot take the adapter {folder}: {error}") from None
    with boundary(DataError, f"reading the adapter {folder}"):
        settings = json.loads((folder / ADAPTER_CONFIG).read_text())
        _check_plain(folder, settings)
        found = file_shapes(folder / ADAPTER_WEIGHTS)
        adapter = Adapter(
            folder=folder,
            base=base,
            base_digest=str(json.loads((folder / BASE_FILE).read_text())["base_digest"]),
            rank=int(settings["r"]),
            alpha=float(settings["lora_alpha"]),
            targets=tuple(sorted({name.split(".")[-3] for name in found} & BLOCK_OF.keys())),
        )
        expected = adapter_shapes(
            json.loads((folder / "config.json").read_text()), adapter.rank, adapter.targets
        )
    _check_shapes(folder, found, expected)
    return adapter


def check_trains_anew(folder: Path, rank: int) -> None:
    """Raises:
    ConfigError: an adapter would be trained on top of the one in ``folder``.
    """
    if is_adapter(folder):
        raise ConfigError(
            f"train.lora_rank = {rank} trains a new adapter, and model.path {folder} is one already: "
            f"make a plain model of it with `dart-gui merge {folder} OUT`"
        )


def check_base(adapter: Adapter, base_digest: str) -> None:
    """Raises:
    DataError: the adapter is of another base than the one with this digest.
    """
    if adapter.base_digest != base_digest:
        raise DataError(
            f"{adapter.folder} is an adapter of weights with the digest "
            f"{adapter.base_digest[:12]} ({adapter.base}), not of those with {base_digest[:12]}: "
            "another model, or one that has been changed since"
        )


def changes_nothing(folder: Path) -> bool:
    """Whether the policy is the base: B is 0, as before the first update.

    Raises:
        DataError: the file cannot be read.
    """
    path = folder / ADAPTER_WEIGHTS
    tensors, data = read_header(path)
    with boundary(DataError, f"reading {path}"), path.open("rb") as file:
        for name, facts in tensors.items():
            if ".lora_B." in name:
                begin, end = facts["data_offsets"]
                file.seek(data + begin)
                width = (end - begin) // math.prod(facts["shape"])
                values = np.frombuffer(file.read(end - begin), dtype=f"<u{width}")
                if (values << 1).any():  # without the sign: there is a -0, too
                    return False
    return True


def write_base(folder: Path, base_digest: str) -> None:
    """Say in ``folder`` of which weights its adapter is."""
    (folder / BASE_FILE).write_text(json.dumps({"base_digest": base_digest}) + "\n")


def adapter_shapes(config: Mapping[str, Any], rank: int, targets: Sequence[str]) -> Shapes:
    """The tensors of an adapter of a model with this ``config.json``: A [r, in] and B [out, r] of each
    target in each layer."""
    text = config.get("text_config") or config
    sizes = projection_sizes(text)
    shapes: Shapes = {}
    for layer in range(text["num_hidden_layers"]):
        for target in targets:
            size_out, size_in = sizes[target]
            module = f"{PEFT_PREFIX}{LAYERS}.{layer}.{BLOCK_OF[target]}.{target}"
            shapes[f"{module}.lora_A.weight"] = (rank, size_in)
            shapes[f"{module}.lora_B.weight"] = (size_out, rank)
    return shapes


def projection_sizes(text: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """(out, in) of the projections of one layer of the language model."""
    hidden, inner = text["hidden_size"], text["intermediate_size"]
    head_size = text.get("head_dim") or hidden // text["num_attention_heads"]
    queries = text["num_attention_heads"] * head_size
    keys = text["num_key_value_heads"] * head_size
    return {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }


def _check_plain(folder: Path, settings: Mapping[str, Any]) -> None:
    foreign = [name for name in _FOREIGN if settings.get(name)]
    foreign += ["bias"] if settings.get("bias", "none") != "none" else []
    foreign += ["init_lora_weights"] if isinstance(settings.get("init_lora_weights"), str) else []
    if settings.get("peft_type") != "LORA" or foreign:
        raise DataError(
            f"{folder} holds an adapter of type {settings.get('peft_type')} with "
            f"{', '.join(foreign) or 'nothing else'} set; expected plain LoRA, as this trainer makes it"
        )


def _check_shapes(folder: Path, found: Shapes, expected: Shapes) -> None:
    wrong = sorted(
        name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name)
    )
    if wrong or not expected:
        example = (
            f"{wrong[0]} is {found.get(wrong[0])} instead of {expected.get(wrong[0])}, "
            * bool(wrong)
        )
        raise DataError(
            f"{folder} holds other tensors than its adapter_config.json and config.json say: "
            f"{example}{len(wrong)} of {len(expected)} differ"
        )
