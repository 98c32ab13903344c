"""A few vLLM servers under one load, and the ways in which they take new weights."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

from dart_gui.errors import PolicyError
from dart_gui.rollout.engines.base import EngineRequest, EngineResult
from dart_gui.rollout.engines.vllm_engine import VllmEngine
from dart_gui.rollout.engines.vllm_server import ModelSettings, VllmServer, VllmSettings
from dart_gui.types import WeightsRef

DRAIN, ABORT, RESTART = "in place, drain", "in place, abort", "restart"
WAYS = (DRAIN, ABORT, RESTART)


_LEAVE_S = 30.0


@dataclass(slots=True)
class Place:
    """One server and the engine in front of it."""

    server: VllmServer
    engine: VllmEngine
    open: bool = True  # takes requests
    asked: set[Future[EngineResult]] = field(default_factory=set)  # what it answers

    @property
    def in_flight(self) -> int:
        return len(self.asked)


@dataclass(slots=True)
class Answered:
    began: float
    ended: float
    resent: int  # times that it was lost with its server, or dropped by it, and sent again whole


@dataclass(slots=True)
class Log:
    """What happened while a load ran. Times are those of the pool's clock."""

    answered: list[Answered] = field(default_factory=list)
    none_open_s: float = 0.0


class ServerPool:
    """Sends each request to the open server with the fewest in flight; waits where none is open."""

    def __init__(
        self,
        model: ModelSettings,
        settings: VllmSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._settings = settings
        self._clock = clock
        self._places: list[Place] = []
        self._changed = asyncio.Condition()

    async def start(self, num_servers: int) -> None:
        first = WeightsRef(policy_version=0, path=str(self._model.folder))
        for _ in range(num_servers):
            server = VllmServer(self._settings)
            self._places.append(Place(server, await asyncio.to_thread(self._serve, server, first)))

    async def close(self) -> None:
        for place in self._places:
            await asyncio.to_thread(place.engine.close)
            await asyncio.to_thread(place.server.close)

    async def ask(self, request: EngineRequest) -> Answered:
        began, resent = self._clock(), 0
        while True:
            place, answer = await self._enter(request)
            waiting = asyncio.wrap_future(answer)
            try:
                await asyncio.wait({waiting})
                if not waiting.cancelled():
                    waiting.result()
                    return Answered(began, self._clock(), resent)
                resent += 1
            except PolicyError:
                if place.open:
                    raise  # nobody took its server away
                resent += 1
            finally:
                async with self._changed:
                    place.asked.discard(answer)
                    self._changed.notify_all()

    async def update(self, way: str, weights: WeightsRef, log: Log) -> float:
        """Bring all servers to ``weights``, one after another; the seconds until all serve them."""
        began = self._clock()
        for place in self._places:
            place.open = False
            alone_since = self._clock()
            if way == RESTART:
                await self._restarted(place, weights)
            else:
                if way == ABORT:
                    for answer in list(place.asked):
                        answer.cancel()
                await self._drained(place)
                await asyncio.to_thread(self._load, place.engine, weights)
            if not any(each.open for each in self._places):
                log.none_open_s += self._clock() - alone_since
            async with self._changed:
                place.open = True
                self._changed.notify_all()
        return self._clock() - began

    async def _enter(self, request: EngineRequest) -> tuple[Place, Future[EngineResult]]:
        async with self._changed:
            await self._changed.wait_for(lambda: any(place.open for place in self._places))
            open_ones = [place for place in self._places if place.open]
            place = min(open_ones, key=lambda each: each.in_flight)
            answer = place.engine.submit(request)
            place.asked.add(answer)
            return place, answer

    async def _drained(self, place: Place) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: place.in_flight == 0)

    def _load(self, engine: VllmEngine, weights: WeightsRef) -> None:
        """What was cancelled is in flight for a moment more."""
        deadline = self._clock() + _LEAVE_S
        while True:
            try:
                engine.load_weights(weights)
                return
            except PolicyError:
                if self._clock() > deadline:
                    raise
                time.sleep(0.005)

    async def _restarted(self, place: Place, weights: WeightsRef) -> None:
        """As the published system does: the process is ended with what it was answering."""
        await asyncio.to_thread(place.server.stop)
        await self._drained(place)  # they have failed, and are sent again
        await asyncio.to_thread(place.engine.close)
        place.engine = await asyncio.to_thread(self._serve, place.server, weights)

    def _serve(self, server: VllmServer, weights: WeightsRef) -> VllmEngine:
        model = replace(self._model, folder=Path(weights.path))
        server.start(model)
        return VllmEngine(
            model,
            replace(self._settings, url=f"unix:{server.socket}"),
            policy_version=weights.policy_version,
            on_failure=lambda: None,
        )
