"""A policy of which only a LoRA adapter is trained; the one place that knows peft."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict

from dart_gui.errors import DataError
from dart_gui.model.adapter_files import (
    BLOCK_OF,
    Adapter,
    check_base,
    check_trains_anew,
    read_adapter,
    write_base,
)
from dart_gui.model.folder import is_adapter
from dart_gui.model.merging import read_tensors
from dart_gui.model.policy_model import PolicyModel
from dart_gui.model.weight_files import sample_digest


class LoraPolicy(PolicyModel):
    """The model of ``folder`` with its weights frozen, and an adapter in float32 beside them that adds
    ``alpha / rank * B A``. A is drawn from torch's generator and B is 0, so at first the policy is the
    base. Saves and loads adapter folders (``adapter_files``).

    Raises:
        ConfigError: ``folder`` is not a model folder, or holds an adapter itself.
    """

    trains_adapter = True

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        alpha: int,
        targets: Sequence[str],
        device: str = "auto",
        dtype: str = "float32",
    ) -> None:
        check_trains_anew(folder, rank)
        super().__init__(folder, device=device, dtype=dtype)
        self._rank, self._alpha, self._targets = rank, float(alpha), tuple(sorted(set(targets)))
        self._base_digest = sample_digest(folder)
        self._peft = _attach(self.network, rank, alpha, self._targets)
        self._peft.peft_config["default"].base_model_name_or_path = str(folder.absolute())
        self.network.eval()

    def as_reference(self) -> AbstractContextManager[None]:
        return self._peft.disable_adapter()

    def load_weights(self, folder: Path) -> None:
        """Take the adapter in ``folder``, all of it or nothing.

        Raises:
            DataError: it holds none, or one of another base, rank, alpha or other targets.
        """
        if not is_adapter(folder):
            raise DataError(
                f"{folder} holds a whole model, and train.lora_rank = {self._rank} trains an "
                "adapter: continue this run with train.lora_rank = 0, or start a new one on it"
            )
        adapter = read_adapter(folder)
        check_base(adapter, self._base_digest)
        self._check_settings(adapter)
        set_peft_model_state_dict(self._peft, read_tensors(folder))

    def save(self, folder: Path) -> None:
        """Write an adapter folder, which peft's own loader takes too."""
        self._peft.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty form of a model card
        self.network.config.save_pretrained(folder)
        self.network.generation_config.save_pretrained(folder)
        self.save_renderer(folder)
        write_base(folder, self._base_digest)

    def _check_settings(self, adapter: Adapter) -> None:
        found = (adapter.rank, adapter.alpha, adapter.targets)
        expected = (self._rank, self._alpha, self._targets)
        if found != expected:
            raise DataError(
                f"{adapter.folder} has rank, alpha and targets {found}, the configuration says "
                f"{expected}: train.lora_rank, lora_alpha and lora_targets stay as they are in a run"
            )


def _attach(network: Any, rank: int, alpha: int, targets: Sequence[str]) -> PeftModel:
    """Put adapters into ``network`` in place, and freeze everything else."""
    blocks = {BLOCK_OF[target] for target in targets}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        # Whole names: the vision tower has modules of the same short ones.
        target_modules=rf"model\.language_model\.layers\.\d+\.({'|'.join(sorted(blocks))})"
        rf"\.({'|'.join(targets)})",
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 for `is_gradient_checkpointing`, which has a newer name.
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(network, config)
    assert isinstance(adapted, PeftModel)
    return adapted
