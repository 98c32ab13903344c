"""Adapters merged into the weights of a network in place, each time from the base's own values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dart_gui.errors import DataError, boundary
from dart_gui.model.adapter_files import ADAPTER_WEIGHTS, PEFT_PREFIX, Adapter, check_base
from dart_gui.model.weight_files import sample_digest


class Merger:
    """``network`` holds the weights of the folder ``base``. The values that an adapter changes are
    kept beside it, in main memory: a base that is restored is so to the last bit."""

    def __init__(self, network: Any, base: Path) -> None:
        self._network = network
        self._base = base
        self._digest = ""  # of the base, once it is needed
        self._originals: dict[str, Tensor] = {}

    def merge(self, adapter: Adapter) -> None:
        """The network computes the base with this adapter, whichever it had before.

        Computed in float32 and rounded to the network's type: in bfloat16 a small B A is lost in part.

        Raises:
            DataError: it is another base's adapter, or cannot be read; nothing has changed then.
        """
        self._digest = self._digest or sample_digest(self._base)
        check_base(adapter, self._digest)
        pairs = read_pairs(adapter)
        with torch.no_grad():
            self._restore()
            for module, (down, up) in pairs.items():
                weight = self._weight(module)
                original = self._originals.setdefault(module, weight.to("cpu", copy=True))
                change = (up.to(weight.device) @ down.to(weight.device)) * adapter.scaling
                weight.copy_(original.to(weight.device).float() + change)

    def _restore(self) -> None:
        for module, original in self._originals.items():
            self._weight(module).copy_(original)

    def _weight(self, module: str) -> Tensor:
        weight: Tensor = self._network.get_submodule(module).weight
        return weight


def read_pairs(adapter: Adapter) -> dict[str, tuple[Tensor, Tensor]]:
    """A [r, in] and B [out, r] in float32 by the name of their module in the network.

    Raises:
        DataError: the file cannot be read, or a value is not finite.
    """
    tensors = {name: value.float() for name, value in read_tensors(adapter.folder).items()}
    modules = {name.rpartition(".lora_")[0] for name in tensors}
    return {
        module.removeprefix(PEFT_PREFIX): (
            tensors[f"{module}.lora_A.weight"],
            tensors[f"{module}.lora_B.weight"],
        )
        for module in sorted(modules)
    }


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """An adapter's, by their names in the file.

    Raises:
        DataError: the file cannot be read, or a value is not finite.
    """
    path = folder / ADAPTER_WEIGHTS
    with boundary(DataError, f"reading {path}"):
        tensors: dict[str, Tensor] = load_file(path)
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise DataError(f"{path} holds weights that are not finite")
    return tensors
