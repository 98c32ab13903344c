"""The seam between a rollout worker and what runs the model."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from dart_gui.rollout.fingerprint import Fingerprint
from dart_gui.types import SamplingParams, WeightsRef


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    messages: list[dict[str, Any]]  # OpenAI chat messages; images as "sha256:<hex>" URLs
    images: Mapping[str, bytes]  # sha256 -> PNG, each image that the messages name
    sampling: SamplingParams  # temperature 0 is greedy


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineResult:
    """See :class:`dart_gui.types.Completion` for the shapes."""

    text: str
    prompt_ids: list[int]
    response_ids: list[int]
    rollout_logprobs: list[float]
    entropies: list[float]
    image_hashes: list[str]
    finish_reason: Literal["stop", "length"]
    masked_token_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    kv_pressure: float = 0.0  # share of the KV cache in use; 0 where requests do not share one
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits: int = 0  # of them found


class Engine(Protocol):
    """Runs the model in its own thread; many requests at once."""

    @property
    def policy_version(self) -> int: ...

    @property
    def fingerprint(self) -> Fingerprint | None:
        """Of the weights in service; None where the engine takes none."""

    @property
    def load(self) -> EngineLoad: ...

    @property
    def busy_s(self) -> float:
        """Seconds since the start in which the model was computing."""

    def submit(self, request: EngineRequest) -> Future[EngineResult]:
        """Queue a request; callable from any thread. The future raises ``ContextLengthError`` where
        the prompt does not fit, ``PolicyError`` where the request is malformed. To cancel it takes
        the request out of the engine, which still counts as in flight until it has left."""

    def load_weights(self, weights: WeightsRef) -> None:
        """Take new weights; blocks. To be called with no request in flight, else ``PolicyError``.
        On any failure the old weights stay in service and ``DataError`` is raised."""

    def close(self) -> None: ...
