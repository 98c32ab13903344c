"""The rollout service as the runner meets it: found again when it was restarted elsewhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from dart_gui.errors import ContextLengthError, PolicyError
from dart_gui.types import Completion, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from dart_gui.rollout.client import RolloutClient

T = TypeVar("T")

Place = tuple[str, int]  # URL and process id: a service that was restarted differs in one of them
Locate = Callable[[], Place | None]


def place_in(run_dir: Path, *, url: str = "") -> Locate:
    """Where the service of a run is: ``url`` where one is configured, else what the service wrote
    into ``status/rollout.json``; None while it has not."""

    def locate() -> Place | None:
        if url:
            return url.rstrip("/"), 0
        try:
            status = json.loads((run_dir / "status" / "rollout.json").read_text("utf-8"))
            return str(status["url"]).rstrip("/"), int(status.get("pid", 0))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    return locate


class FoundPolicy:
    """A :class:`~dart_gui.runner.policy.ServedPolicy` that looks up where the service is: at first,
    and after each failure. A request that failed at the old place is sent once to the new one."""

    def __init__(self, locate: Locate, connect: Callable[[str], RolloutClient]) -> None:
        """``connect`` makes the client of a URL."""
        self._locate = locate
        self._connect = connect
        self._moving = asyncio.Lock()
        self._place: Place | None = None
        self._client: RolloutClient | None = None
        # A client that was left stays open to the end: requests of others may still be inside it.
        self._clients = AsyncExitStack()

    async def __aenter__(self) -> FoundPolicy:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._clients.aclose()

    async def complete(
        self,
        messages: list[dict[str, Any]],
        images: Mapping[str, bytes],
        sampling: SamplingParams,
        *,
        trajectory_id: str,
    ) -> Completion:
        return await self._try(
            lambda client: client.complete(messages, images, sampling, trajectory_id=trajectory_id)
        )

    async def served_version(self) -> int:
        status = await self._try(lambda client: client.status())
        # Else the version would be the one to come: true, but nobody is there to answer.
        if all(worker.state in ("starting", "dead") for worker in status.workers):
            raise PolicyError("no worker of the rollout service is up")
        return status.min_version

    async def _try(self, call: Callable[[RolloutClient], Awaitable[T]]) -> T:
        client = self._client or await self._move()
        try:
            return await call(client)
        except ContextLengthError:
            raise
        except PolicyError:
            moved = await self._move()
            if moved is client:
                raise
            return await call(moved)

    async def _move(self) -> RolloutClient:
        """The client of the place where the service is now."""
        async with self._moving:
            place = self._locate()
            if place is None:
                raise PolicyError("the rollout service has not said where it is yet")
            if self._client is None or place != self._place:
                self._client = await self._clients.enter_async_context(self._connect(place[0]))
                self._place = place
            return self._client
