"""What tells one set of weights in a worker from another, and whether the workers agree.

A checksum is of the parameters as the engine holds them, so it is equal between workers of one
layout. The log-probabilities are those of a fixed prompt: they go through everything, the caches and
the sampler too.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

log = logging.getLogger(__name__)
MAX_DIFFERENCE = 0.05  # nats; beyond what kernels and batch sizes do to bfloat16
_MAX_REMEMBERED = 8


@dataclass(frozen=True, slots=True)
class Fingerprint:
    checksum: str
    ids: tuple[int, ...]  # the greedy reply to the fixed prompt
    logprobs: tuple[float, ...]  # of ids

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Fingerprint:
        return cls(str(tree["checksum"]), tuple(tree["ids"]), tuple(tree["logprobs"]))

    def difference(self, other: Fingerprint) -> str:
        """In words; empty where both are of the same weights."""
        if self.checksum != other.checksum:
            return f"the checksum is {self.checksum[:12]} instead of {other.checksum[:12]}"
        pairs = zip(self.ids, other.ids, self.logprobs, other.logprobs, strict=False)
        for mine, theirs, a, b in pairs:
            if abs(a - b) > MAX_DIFFERENCE:
                return f"token {theirs} of the probe has {a:.4f} nats instead of {b:.4f}"
            if (
                mine != theirs
            ):  # a tie that rounding breaks either way; what follows is another text
                return ""
        return ""


@dataclass(frozen=True, slots=True)
class _Witness:
    worker_id: str
    fingerprint: Fingerprint
    fresh: bool  # read by a process at its start, not taken in place


class Agreement:
    """Every worker at one version must have one fingerprint. Where two differ, a process that read
    the weights at its start is believed before one that took them in place."""

    def __init__(self) -> None:
        self._witnesses: dict[int, _Witness] = {}

    def suspect(
        self, worker_id: str, version: int, fingerprint: Fingerprint | None, *, fresh: bool
    ) -> str | None:
        """The worker to give up, None where all agree (or an engine takes no fingerprints)."""
        if fingerprint is None:
            return None
        known = self._witnesses.get(version)
        difference = fingerprint.difference(known.fingerprint) if known else ""
        if known is None or known.worker_id == worker_id or (fresh and difference):
            self._witnesses[version] = _Witness(worker_id, fingerprint, fresh)
            for old in sorted(self._witnesses)[:-_MAX_REMEMBERED]:
                del self._witnesses[old]
        if known is None or known.worker_id == worker_id or not difference:
            return None
        log.error(
            "%s and %s differ at version %d: %s", worker_id, known.worker_id, version, difference
        )
        if not fresh:
            return worker_id
        return None if known.fresh else known.worker_id
