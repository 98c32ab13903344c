"""The rollout service as a process: its parts, from start to end."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastapi import FastAPI
from starlette.types import ASGIApp

from dart_gui.config import Config
from dart_gui.rollout.assembly import capacity, chat_defaults, new_fleet, socket_dir
from dart_gui.rollout.binding import bind
from dart_gui.rollout.dispatch import Dispatcher
from dart_gui.rollout.fleet import Fleet
from dart_gui.rollout.health import HealthMonitor
from dart_gui.rollout.httpd import (
    BearerAuth,
    HttpServer,
    new_app,
)
from dart_gui.rollout.router import Router
from dart_gui.rollout.routes import RolloutService
from dart_gui.rollout.telemetry import Telemetry
from dart_gui.rollout.updates import UpdateJob, Updates
from dart_gui.types import WeightsRef

_DRAIN_S = 3.0


@dataclass(frozen=True, slots=True)
class RunningService:
    """What :func:`serve` gives while it serves."""

    url: str
    fleet: Fleet
    server: HttpServer

    async def wait(self) -> None:
        """Until the server or a worker's controller ends, which without :func:`serve`'s exit is a
        failure: the process should end and be started again."""
        tasks = {asyncio.create_task(self.server.wait()), asyncio.create_task(self.fleet.wait())}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()


class Extension(Protocol):
    """Further routes of the process, such as those of the published service."""

    def add_routes(self, app: FastAPI, service: RolloutService, url: str) -> None:
        """Before the service's own, so that a route of the same path replaces it."""

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Around everything, the check of the token included."""


def _ignore(_: object) -> None:
    return


@asynccontextmanager
async def serve(
    config: Config,
    *,
    token: str,
    weights: WeightsRef | None = None,
    preferred_port: int = 0,
    on_publish: Callable[[WeightsRef], None] = _ignore,
    updates: Sequence[UpdateJob] = (),
    on_updates: Callable[[list[UpdateJob]], None] = _ignore,
    extensions: Sequence[Extension] = (),
) -> AsyncIterator[RunningService]:
    """Serve from entry, when every worker is ready, to exit, when every process has ended.

    ``weights`` are the newest published ones, None for ``model.path`` at version 0; ``on_publish``
    is called with each newer version before it is acknowledged. ``preferred_port`` is tried where
    the configuration asks for any free port. ``updates`` are the jobs known before a restart;
    ``on_updates`` gets all of them after each change.

    Raises:
        SetupError: the port is taken, or a worker cannot start.
    """
    base = WeightsRef(policy_version=0, path=config.model.path)
    sock = bind(config.rollout.host, config.rollout.port, preferred_port)
    with sock, tempfile.TemporaryDirectory(prefix="dart-", dir=socket_dir()) as folder:
        fleet = new_fleet(config, Path(folder), base=base, desired=weights or base)
        service, monitor = _assemble(
            config, fleet, on_publish=on_publish, updates=updates, on_updates=on_updates
        )
        host, port = sock.getsockname()[:2]
        url = f"http://{host}:{port}"
        server = HttpServer(_guarded_app(service, extensions, token, url), sock)
        try:
            await fleet.start()
            await server.start()
            health = asyncio.create_task(monitor.run())
            try:
                yield RunningService(url, fleet, server)
            finally:
                health.cancel()
        finally:
            await service.drain(_DRAIN_S)
            await server.close()
            await fleet.close()


def _assemble(
    config: Config,
    fleet: Fleet,
    *,
    on_publish: Callable[[WeightsRef], None],
    updates: Sequence[UpdateJob],
    on_updates: Callable[[list[UpdateJob]], None],
) -> tuple[RolloutService, HealthMonitor]:
    limit = capacity(config.rollout.max_batch_size)
    router = Router(
        fleet.slots,
        capacity=limit,
        max_queue=config.rollout.max_queue or None,
        max_imbalance=config.rollout.max_imbalance,
    )
    telemetry = Telemetry()
    service = RolloutService(
        fleet,
        router,
        Dispatcher(router, fleet, timeout_s=config.rollout.request_timeout_s, telemetry=telemetry),
        Updates(fleet.slots, refusal=fleet.refusal, jobs=updates, save=on_updates),
        telemetry,
        defaults=chat_defaults(config),
        image_cache_bytes=config.rollout.image_cache_mb * 2**20,
        on_publish=on_publish,
    )
    return service, HealthMonitor(
        fleet, capacity=limit, interval_s=config.rollout.health_interval_s
    )


def _guarded_app(
    service: RolloutService, extensions: Sequence[Extension], token: str, url: str
) -> ASGIApp:
    app = new_app()
    for extension in extensions:
        extension.add_routes(app, service, url)
    service.add_routes(app)
    guarded: ASGIApp = BearerAuth(app, token)
    for extension in extensions:
        guarded = extension.wrap(guarded)
    return guarded
