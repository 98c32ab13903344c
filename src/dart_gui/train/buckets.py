"""Measurements of a train step per staleness, so that the price of being off-policy is seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dart_gui.train.losses import effective_share


@dataclass(slots=True)
class StalenessBuckets:
    """Token measurements by staleness, kept until the step is over: the effective sample size is no
    sum of parts."""

    _parts: list[tuple[Tensor, dict[str, Tensor]]] = field(default_factory=list)

    def add(self, staleness: Tensor, **tokens: Tensor) -> None:
        """``staleness`` [T] of each token, and values [T]; ``weight`` is pi_old / mu, untruncated."""
        values = {name: value.detach().float().cpu() for name, value in tokens.items()}
        self._parts.append((staleness.cpu(), values))

    def summary(self) -> Mapping[str, dict[str, float]]:
        """Per staleness, as text: means of the values, ``ess`` as a share of ``num_tokens``."""
        if not self._parts:
            return {}
        staleness = torch.cat([part[0] for part in self._parts])
        names = self._parts[0][1]
        values = {name: torch.cat([part[1][name] for part in self._parts]) for name in names}
        found = {}
        for bucket in sorted(set(staleness.tolist())):
            inside = staleness == bucket
            means = {n: float(v[inside].mean()) for n, v in values.items() if n != "weight"}
            found[str(bucket)] = {
                "num_tokens": int(inside.sum()),
                "ess": effective_share(values["weight"][inside]),
                **means,
            }
        return found
