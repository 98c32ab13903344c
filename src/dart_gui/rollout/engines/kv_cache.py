"""Keys and values of the sequences that are being decoded, one slot each.

Fixed slots make continuous batching plain: a sequence that ends frees its slot, the next one takes it,
and no other sequence moves. The object stands in for transformers' ``Cache``: attention layers call
``update``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class SlotCache:
    """``max_slots`` sequences of at most ``max_context`` tokens.

    A forward pass covers the slots ``rows`` [B]; row b writes at ``starts[b] .. starts[b] + L`` and
    reads the first ``width`` positions. What it must not see is the attention mask's business.
    """

    def __init__(self, text_config: Any, *, max_slots: int, max_context: int, like: Tensor) -> None:
        head_dim = text_config.hidden_size // text_config.num_attention_heads
        shape = (
            text_config.num_hidden_layers,
            max_slots,
            text_config.num_key_value_heads,
            max_context,
            head_dim,
        )
        self._keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self._values = torch.zeros_like(self._keys)
        self._rows = torch.zeros(0, dtype=torch.long, device=like.device)
        self._columns = torch.zeros(0, dtype=torch.long, device=like.device)
        self._width = 0

    def select(self, rows: Tensor, starts: Tensor, length: int) -> Tensor:
        """Aim the next forward pass of ``length`` tokens a row; returns its mask [B, 1, L, W], true
        where a query may look."""
        columns = starts[:, None] + torch.arange(length, device=starts.device)  # [B, L]
        self._rows, self._columns = rows, columns
        self._width = int(columns.max()) + 1
        seen = torch.arange(self._width, device=starts.device)
        return (seen[None, None, :] <= columns[:, :, None])[:, None]

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Store keys and values [B, heads, L, dim] and return all of the rows [B, heads, W, dim]."""
        rows, columns = self._rows, self._columns
        self._keys[layer][rows[:, None], :, columns] = keys.transpose(1, 2)
        self._values[layer][rows[:, None], :, columns] = values.transpose(1, 2)
        return self._keys[layer, rows, :, : self._width], self._values[
            layer, rows, :, : self._width
        ]

    def get_seq_length(self, layer: int = 0) -> int:
        return self._width
