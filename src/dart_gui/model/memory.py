"""How much GPU memory a model takes in an inference server and in training, from its ``config.json``
alone.

Formulas: the parameters of the Qwen2.5-VL architecture counted by layer (transformers
``models/qwen2_5_vl/modeling_qwen2_5_vl.py``), and 2 * layers * kv heads * head size values per token in
the KV cache. What else a server takes (activations, CUDA graphs, the vision tower's work) is an
estimate. What a layer keeps for its backward pass was counted with torch's saved-tensor hooks on one
layer of the 7B model (transformers 5.23, peft 0.21, bfloat16, sdpa).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dart_gui.errors import ConfigError, boundary
from dart_gui.model.adapter_files import projection_sizes

GB = 10**9
GPU_KINDS_GB: Mapping[str, float] = {
    "RTX 4090, A10 (24 GB)": 24.0,
    "A100 (40 GB)": 40.0,
    "L40S (48 GB)": 48.0,
    "A100, H100 (80 GB)": 80.0,
    "H200 (141 GB)": 141.0,
}
OVERHEAD_GB = 5.0  # per GPU: an estimate
_BYTES = {"float32": 4, "bfloat16": 2}
_ADAPTER_BYTES = 16  # of one parameter in float32: value, gradient and AdamW's two moments
_LOGIT_BYTES = 28  # of one id's logit, with all that becomes of it on the way to the loss


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    num_parameters: int
    kv_values_per_token: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    lora_parameters: Mapping[str, int]  # of an adapter of rank 1, by target

    def weights_gb(self, dtype: str) -> float:
        return self.num_parameters * _BYTES[dtype] / GB

    def kv_bytes_per_token(self, dtype: str) -> int:
        return self.kv_values_per_token * _BYTES[dtype]

    def cached_tokens(self, gpu_gb: float, *, dtype: str, num_gpus: int, utilization: float) -> int:
        """Tokens that fit the KV cache of a server on ``num_gpus`` GPUs; 0 where not even the
        weights fit."""
        free_gb = num_gpus * (gpu_gb * utilization - OVERHEAD_GB) - self.weights_gb(dtype)
        return max(0, int(free_gb * GB / self.kv_bytes_per_token(dtype)))

    def num_adapter_parameters(self, rank: int, targets: Sequence[str]) -> int:
        return rank * sum(self.lora_parameters[target] for target in set(targets))

    def trained_gb(
        self, dtype: str, *, rank: int, targets: Sequence[str], reference: bool
    ) -> float:
        """Weights, gradients and AdamW's moments: with an adapter (``rank`` > 0) those of the adapter
        beside the weights, which are the reference too."""
        if rank:
            adapter = self.num_adapter_parameters(rank, targets) * _ADAPTER_BYTES / GB
            return self.weights_gb(dtype) + adapter
        return self.weights_gb(dtype) * (5 if reference else 4)

    def activations_gb(
        self, dtype: str, *, num_tokens: int, num_replies: int, lora: bool, checkpointing: bool
    ) -> float:
        """Of a micro-batch of ``num_tokens``, ``num_replies`` of them of replies. A layer keeps about
        32 hidden and 4 intermediate vectors, and with an adapter one of each in float32."""
        kept = _BYTES[dtype] * (32 * self.hidden_size + 4 * self.intermediate_size)
        kept += 4 * (self.hidden_size + self.intermediate_size) * lora
        inputs = _BYTES[dtype] * self.hidden_size * self.num_layers
        per_token = inputs + kept if checkpointing else kept * self.num_layers
        logits = num_replies * self.vocab_size * _LOGIT_BYTES
        return (num_tokens * per_token + logits) / GB


def read_size(folder: Path) -> ModelSize:
    """Raises:
    ConfigError: ``folder`` has no ``config.json`` of the Qwen2.5-VL architecture.
    """
    with boundary(ConfigError, f"reading the dimensions of the model {folder}"):
        return size_of(json.loads((folder / "config.json").read_text()))


def size_of(config: Mapping[str, Any]) -> ModelSize:
    """``config`` in either spelling: the text model's keys at the top, or under ``text_config``."""
    text = config.get("text_config") or config
    vision = config["vision_config"]
    head_size = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    tied = config.get("tie_word_embeddings", False)
    embeddings = text["vocab_size"] * text["hidden_size"] * (1 if tied else 2)
    return ModelSize(
        num_parameters=embeddings
        + text["num_hidden_layers"] * _text_layer(text, head_size)
        + text["hidden_size"]
        + _vision(vision, text["hidden_size"]),
        kv_values_per_token=2 * text["num_hidden_layers"] * text["num_key_value_heads"] * head_size,
        num_layers=text["num_hidden_layers"],
        hidden_size=text["hidden_size"],
        intermediate_size=text["intermediate_size"],
        vocab_size=text["vocab_size"],
        lora_parameters={
            target: text["num_hidden_layers"] * (size_out + size_in)
            for target, (size_out, size_in) in projection_sizes(text).items()
        },
    )


def _text_layer(text: Mapping[str, Any], head_size: int) -> int:
    hidden = text["hidden_size"]
    queries = text["num_attention_heads"] * head_size
    keys = text["num_key_value_heads"] * head_size
    attention = 2 * hidden * queries + queries + 2 * (hidden * keys + keys)
    return int(attention + 3 * hidden * text["intermediate_size"] + 2 * hidden)


def _vision(vision: Mapping[str, Any], out: int) -> int:
    hidden, inner = vision["hidden_size"], vision["intermediate_size"]
    attention = 4 * (hidden * hidden + hidden)
    mlp = 3 * hidden * inner + 2 * inner + hidden
    block = attention + mlp + 2 * hidden
    patch = vision.get("in_channels", vision.get("in_chans", 3)) * vision.get("patch_size", 14) ** 2
    patch *= vision.get("temporal_patch_size", 2)
    merged = hidden * vision.get("spatial_merge_size", 2) ** 2
    merger = hidden + merged * merged + merged + merged * out + out
    return int(vision["depth"] * block + patch * hidden + merger)
