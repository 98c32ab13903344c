"""The rollout service: an OpenAI-compatible server in front of N worker processes.

Routes, all with a bearer token: ``PUT /images/{sha256}``, ``POST /v1/chat/completions``,
``GET /v1/models``, ``POST /weights``, ``GET /status``, ``GET /health``, ``GET /openapi.json``. A
screenshot is put once under the hash of its PNG and named by it afterwards; data URLs work too.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response

from dart_gui.config import Config
from dart_gui.errors import SetupError
from dart_gui.rollout import openapi
from dart_gui.rollout.chat import MIN_TEMPERATURE, ChatDefaults, ChatRequest, parse_request
from dart_gui.rollout.dispatch import Dispatcher
from dart_gui.rollout.fleet import Fleet
from dart_gui.rollout.httpd import (
    ApiError,
    BearerAuth,
    HttpServer,
    bad_request,
    json_response,
    new_app,
    read_body,
    read_json,
)
from dart_gui.rollout.images import (
    MAX_IMAGE_BYTES,
    ImageCache,
    check_png,
    image_hash,
    is_image_hash,
)
from dart_gui.rollout.router import Router
from dart_gui.rollout.states import WorkerSlot, WorkerState
from dart_gui.rollout.worker import MAX_REQUEST_BYTES, WorkerSettings
from dart_gui.rollout.worker_process import WorkerProcess
from dart_gui.types import WeightsRef

log = logging.getLogger(__name__)
_MAX_IMAGES_PER_REQUEST = 64
_DRAIN_S = 3.0


class RolloutService:
    """The routes, over a fleet of workers."""

    def __init__(
        self,
        fleet: Fleet,
        router: Router,
        dispatcher: Dispatcher,
        *,
        defaults: ChatDefaults,
        image_cache_bytes: int,
        on_publish: Callable[[WeightsRef], None],
    ) -> None:
        self._fleet = fleet
        self._router = router
        self._dispatcher = dispatcher
        self._defaults = defaults
        self._images = ImageCache(image_cache_bytes)
        self._on_publish = on_publish
        self._closing = False

    def app(self) -> FastAPI:
        app = new_app()
        app.add_api_route("/images/{key}", self.put_image, methods=["PUT"])
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        app.add_api_route("/v1/models", self.models, methods=["GET"])
        app.add_api_route("/weights", self.publish, methods=["POST"])
        app.add_api_route("/status", self.status, methods=["GET"])
        app.add_api_route("/health", self.health, methods=["GET"])
        app.add_api_route("/openapi.json", self.openapi, methods=["GET"])
        return app

    async def drain(self, timeout_s: float) -> None:
        """Take no new request; wait a while for those in flight."""
        self._closing = True
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self._dispatcher.num_in_flight and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)

    async def put_image(self, key: str, request: Request) -> Response:
        if not is_image_hash(key):
            raise bad_request(f"/images/{key[:80]}: expected 64 lower-case hex digits (sha256)")
        png = await read_body(request, MAX_IMAGE_BYTES)
        actual = image_hash(png)
        if actual != key:
            raise bad_request(f"the {len(png)} bytes have the sha256 {actual}, not {key}")
        try:
            check_png(png)
        except ValueError as error:
            raise bad_request(f"image {key}: {error}") from None
        self._images.put(key, png)
        return json_response({"sha256": key, "num_bytes": len(png)})

    async def chat(self, request: Request) -> Response:
        if self._closing:
            raise ApiError(503, "shutting_down", "the service is shutting down")
        body = await read_json(request, MAX_REQUEST_BYTES)
        chat, inline = parse_request(body, self._defaults)
        images = self._collect(chat, inline)
        trajectory_id = request.headers.get("x-trajectory-id", "")
        answer = await self._dispatcher.complete(chat, images, trajectory_id=trajectory_id)
        return Response(answer.body, status_code=answer.status, media_type="application/json")

    def _collect(self, chat: ChatRequest, inline: dict[str, bytes]) -> dict[str, bytes]:
        """Held by the request from here on: what the cache evicts later does not matter to it."""
        if len(chat.image_hashes) > _MAX_IMAGES_PER_REQUEST:
            raise bad_request(
                f"{len(chat.image_hashes)} images in one prompt; at most {_MAX_IMAGES_PER_REQUEST}"
            )
        for key, png in inline.items():
            self._images.put(key, png)
        images: dict[str, bytes] = {}
        missing: list[str] = []
        for key in dict.fromkeys(chat.image_hashes):
            found = inline.get(key) or self._images.get(key)
            if found is None:
                missing.append(key)
            else:
                images[key] = found
        if missing:
            raise ApiError(
                404,
                "missing_images",
                f"{len(missing)} images are unknown: PUT /images/<sha256> first",
                hashes=missing,
            )
        return images

    async def models(self) -> Response:
        model = {
            "id": self._defaults.model,
            "object": "model",
            "owned_by": "dart-gui",
            "created": 0,
            "max_model_len": self._defaults.max_context,
        }
        return json_response({"object": "list", "data": [model]})

    async def publish(self, request: Request) -> Response:
        """Sets what the workers should serve and returns at once: /status tells their progress."""
        body = await read_json(request, 2**20)
        version, path = body.get("policy_version"), body.get("path")
        if (
            not isinstance(version, int)
            or isinstance(version, bool)
            or not 0 <= version <= openapi.MAX_VERSION
        ):
            raise bad_request(
                f"policy_version = {version!r:.40} must be an integer from 0 to "
                f"{openapi.MAX_VERSION}"
            )
        folder = os.path.abspath(path) if isinstance(path, str) and path else ""
        if not _is_path(folder):
            raise bad_request("path must name a Hugging Face folder")
        weights = WeightsRef(policy_version=version, path=folder)
        accepted = self._fleet.publish(weights)
        if accepted:
            self._on_publish(weights)
        desired = self._fleet.desired.policy_version
        return json_response({"accepted": accepted, "desired_version": desired})

    async def status(self) -> Response:
        return json_response(
            {
                "workers": [_worker_status(slot) for slot in self._fleet.slots],
                "desired_version": self._fleet.desired.policy_version,
                "queue_size": self._router.queue_size,
                "update_error": self._fleet.update_error,
                "num_images": len(self._images),
                "image_bytes": self._images.num_bytes,
                "model": self._defaults.model,
            }
        )

    async def openapi(self) -> Response:
        return json_response(
            openapi.document(
                min_temperature=MIN_TEMPERATURE, max_context=self._defaults.max_context
            )
        )

    async def health(self) -> Response:
        """200 while some worker is ready or about to be again."""
        down = (WorkerState.STARTING, WorkerState.DEAD)
        if self._closing or all(slot.state in down for slot in self._fleet.slots):
            raise ApiError(503, "not_ready", "no worker is ready")
        return json_response({"status": "ok"})


def _is_path(folder: str) -> bool:
    """Whether the file system can be asked for it: what it cannot be asked ends a controller."""
    try:
        return 0 < len(os.fsencode(folder)) <= openapi.MAX_PATH and "\0" not in folder
    except UnicodeEncodeError:
        return False


def _worker_status(slot: WorkerSlot) -> dict[str, Any]:
    return {
        "worker_id": slot.worker_id,
        "state": slot.state,
        "policy_version": slot.policy_version,
        "num_in_flight": slot.num_in_flight,
        "num_completed": slot.num_completed,
        "busy_s": slot.busy_s,
        "restarts": slot.restarts,
    }


# --- the process ---------------------------------------------------------------------------


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


def _ignore(_: WeightsRef) -> None:
    return


@asynccontextmanager
async def serve(
    config: Config,
    *,
    token: str,
    weights: WeightsRef | None = None,
    preferred_port: int = 0,
    on_publish: Callable[[WeightsRef], None] = _ignore,
) -> AsyncIterator[RunningService]:
    """Serve from entry, when every worker is ready, to exit, when every process has ended.

    ``weights`` are the newest published ones, None for ``model.path`` at version 0; ``on_publish``
    is called with each newer version before it is acknowledged. ``preferred_port`` is tried where
    the configuration asks for any free port.

    Raises:
        SetupError: the port is taken, or a worker cannot start.
    """
    base = WeightsRef(policy_version=0, path=config.model.path)
    sock = _bind(config.rollout.host, config.rollout.port, preferred_port)
    with sock, tempfile.TemporaryDirectory(prefix="dart-", dir=_socket_dir()) as folder:
        fleet = _new_fleet(config, Path(folder), base=base, desired=weights or base)
        router = Router(fleet.slots, capacity=_capacity(config.rollout.max_batch_size))
        dispatcher = Dispatcher(router, fleet, timeout_s=config.rollout.request_timeout_s)
        service = RolloutService(
            fleet,
            router,
            dispatcher,
            defaults=_defaults(config),
            image_cache_bytes=config.rollout.image_cache_mb * 2**20,
            on_publish=on_publish,
        )
        server = HttpServer(BearerAuth(service.app(), token), sock)
        host, port = sock.getsockname()[:2]
        try:
            await fleet.start()
            await server.start()
            yield RunningService(f"http://{host}:{port}", fleet, server)
        finally:
            await service.drain(_DRAIN_S)
            await server.close()
            await fleet.close()


def _socket_dir() -> str | None:
    """The path of a Unix socket has at most 107 bytes (103 on macOS)."""
    return None if len(os.fsencode(tempfile.gettempdir())) < 70 else "/tmp"


def _capacity(max_batch_size: int) -> int:
    """A few more than are decoded at once: the engine starts the next without a round trip."""
    return max_batch_size + max(1, max_batch_size // 4)


def _bind(host: str, port: int, preferred: int) -> socket.socket:
    if port == 0 and preferred:
        try:
            return _bind_one(host, preferred)
        except OSError:
            log.info("port %d of the last start is taken: using another one", preferred)
    try:
        return _bind_one(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SetupError(
                f"rollout.port = {port} on {host} is taken by another process. Stop that process, "
                "or set rollout.port to another port, or to 0 for a free one."
            ) from None
        raise SetupError(
            f"cannot listen on rollout.host = {host!r}, rollout.port = {port}: "
            f"{error.strerror or error}. Use an address of this machine, such as 127.0.0.1."
        ) from None


def _bind_one(host: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def _defaults(config: Config) -> ChatDefaults:
    return ChatDefaults(
        model=Path(config.model.path).name or config.model.path,
        temperature=config.rollout.temperature,
        max_tokens=config.rollout.max_tokens,
        max_context=config.rollout.max_context,
        draw_seed=lambda: secrets.randbits(63),
    )


def _new_fleet(config: Config, folder: Path, *, base: WeightsRef, desired: WeightsRef) -> Fleet:
    numbers = itertools.count()

    def new_process(slot: WorkerSlot) -> WorkerProcess:
        # a socket of its own for each start: the one of a killed process stays on disk
        path = folder / f"{slot.worker_id}-{next(numbers)}.sock"
        return WorkerProcess(slot, _worker_settings(config, slot.worker_id, path))

    return Fleet(
        [WorkerSlot(worker_id=f"worker-{index}") for index in range(config.rollout.num_workers)],
        new_process,
        base=base,
        desired=desired,
        max_unavailable=config.rollout.max_unavailable,
        drain_timeout_s=config.rollout.request_timeout_s,
    )


def _worker_settings(config: Config, worker_id: str, path: Path) -> WorkerSettings:
    return WorkerSettings(
        worker_id=worker_id,
        socket=str(path),
        engine=config.rollout.engine,
        model_path=config.model.path,
        policy_version=0,
        max_batch_size=config.rollout.max_batch_size,
        max_context=config.rollout.max_context,
        device=config.model.device,
        dtype=config.model.dtype,
        threads=config.launch.threads,
        image_cache_bytes=config.rollout.image_cache_mb * 2**20,
    )
