"""What the trainer takes of a GPU with a configuration, computed; for ``doctor`` and ``--dry-run``."""

from __future__ import annotations

import math
from pathlib import Path

from dart_gui.config import Config
from dart_gui.errors import ConfigError
from dart_gui.model.memory import GPU_KINDS_GB, OVERHEAD_GB, read_size


def describe(config: Config) -> str:
    """Raises:
    ConfigError: there is no model folder to read dimensions from.
    """
    total_gb, parts = training_gb(config)
    fits = [kind for kind, gpu_gb in GPU_KINDS_GB.items() if gpu_gb >= total_gb]
    where = f"fits {fits[0]}" if fits else "fits no single GPU"
    return f"on a GPU {total_gb:.1f} GB ({', '.join(parts)}): {where}{_advice(config, bool(fits))}"


def training_gb(config: Config) -> tuple[float, list[str]]:
    """Of the trainer's process in all, and what it is made of."""
    train, dtype = config.train, config.model.dtype
    size = read_size(Path(config.model.path))
    trained = size.trained_gb(
        dtype, rank=train.lora_rank, targets=train.lora_targets, reference=train.kl_coef > 0
    )
    # Full contexts: shorter ones are more to a micro-batch, with more replies and less prompt.
    num_samples = math.ceil(train.max_tokens_per_microbatch / config.rollout.max_context)
    activations = size.activations_gb(
        dtype,
        num_tokens=train.max_tokens_per_microbatch,
        num_replies=num_samples * config.rollout.max_tokens,
        lora=train.lora_rank > 0,
        checkpointing=train.activation_checkpointing,
    )
    num_adapter = size.num_adapter_parameters(train.lora_rank, train.lora_targets)
    what = (
        f"the weights and an adapter of {num_adapter / 1e6:.1f} million parameters"
        if train.lora_rank
        else "all parameters with gradients and AdamW's moments"
    )
    parts = [
        f"{trained:.1f} GB {what}",
        f"{activations:.1f} GB activations of {train.max_tokens_per_microbatch} tokens",
        f"{OVERHEAD_GB:g} GB set aside",
    ]
    return trained + activations + OVERHEAD_GB, parts


def dry_run_lines(config: Config) -> list[str]:
    """Comments for ``train --dry-run``, where a GPU is meant."""
    if config.rollout.engine != "vllm" and config.train.lora_rank == 0:
        return []
    try:
        return [f"# training: {describe(config)}"]
    except ConfigError as error:
        return [f"# training: not known yet: {error}"]


def _advice(config: Config, fits: bool) -> str:
    train = config.train
    missing = [
        text
        for text, is_set in (
            ("train.lora_rank", train.lora_rank > 0),
            ("train.activation_checkpointing", train.activation_checkpointing),
        )
        if not is_set
    ]
    return f"; see {' and '.join(missing)}" if missing and not fits else ""
