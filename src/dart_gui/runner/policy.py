"""The runner's view of the rollout service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from dart_gui.types import Completion, SamplingParams


class Policy(Protocol):
    """Maps a prompt to a completion. ``RolloutClient`` is one; so is the random policy."""

    async def complete(
        self,
        messages: list[dict[str, Any]],
        images: Mapping[str, bytes],
        sampling: SamplingParams,
        *,
        trajectory_id: str,
    ) -> Completion:
        """
        Args:
            messages: OpenAI chat messages; an image is named by its ``sha256:<hex>`` URL.
            images: sha256 -> PNG, each image that the messages name.

        Raises:
            ContextLengthError: the prompt does not fit the context.
            PolicyError: no answer; infrastructure.
        """


class ServedPolicy(Policy, Protocol):
    """A policy behind a service that says how it is."""

    async def served_version(self) -> int:
        """The lowest policy version in service.

        Raises:
            PolicyError: the service does not answer, or no worker of it is in service.
        """
