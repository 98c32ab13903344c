"""A worker process: one engine behind HTTP on a Unix socket that only the service can reach.

The service starts it with its settings as JSON in the first argument. Its standard output carries
one JSON line, ``{"policy_version": n}`` when it takes requests or ``{"error": text}`` when it
cannot; everything else goes to standard error. It lives as long as its standard input is open: when
the service goes, whatever the way, the pipe closes and the worker goes too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response

from dart_gui.byte_cache import ByteCache
from dart_gui.errors import ContextLengthError, DartError, PolicyError
from dart_gui.rollout.chat import ChatRequest, completion_body
from dart_gui.rollout.engines.base import Engine, EngineRequest, EngineResult
from dart_gui.rollout.httpd import (
    ApiError,
    HttpServer,
    bad_request,
    json_response,
    new_app,
    read_body,
    read_json,
)
from dart_gui.rollout.images import MAX_IMAGE_BYTES
from dart_gui.types import WeightsRef

log = logging.getLogger(__name__)
MAX_REQUEST_BYTES = 64 * 2**20
BUSY_HEADER = "x-busy-s"
VERSION_HEADER = "x-policy-version"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    worker_id: str
    socket: str
    engine: str
    model_path: str
    policy_version: int
    max_batch_size: int
    max_context: int
    device: str
    dtype: str
    threads: int
    lora_rank: int = 0  # of the adapters to come; 0 for whole weights
    image_cache_bytes: int
    request_timeout_s: float = 3600.0
    vllm: dict[str, Any] | None = None  # of VllmSettings, for the engine of that name


def build_engine(settings: WorkerSettings) -> Engine:
    """Raises:
    DartError: the model folder is not one, or does not fit this machine.
    """
    if settings.engine == "fake":
        from dart_gui.rollout.engines.fake import FakeEngine

        return FakeEngine(
            Path(settings.model_path),
            policy_version=settings.policy_version,
            max_context=settings.max_context,
        )
    if settings.engine == "vllm":
        return _build_vllm(settings)
    from dart_gui.rollout.engines.transformers_engine import TransformersEngine

    return TransformersEngine(
        Path(settings.model_path),
        policy_version=settings.policy_version,
        max_batch_size=settings.max_batch_size,
        max_context=settings.max_context,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
    )


def _build_vllm(settings: WorkerSettings) -> Engine:
    from dart_gui.rollout.engines.vllm_engine import VllmEngine
    from dart_gui.rollout.engines.vllm_server import ModelSettings, VllmSettings

    model = ModelSettings(
        folder=Path(settings.model_path),
        max_context=settings.max_context,
        max_batch_size=settings.max_batch_size,
        dtype=settings.dtype,
        threads=settings.threads,
        lora_rank=settings.lora_rank,
    )
    return VllmEngine(
        model,
        VllmSettings(**settings.vllm or {}),
        policy_version=settings.policy_version,
        request_timeout_s=settings.request_timeout_s,
    )


def engine_facts(engine: Engine) -> dict[str, Any]:
    """What the service is told of an engine after its start and after each load."""
    fingerprint = engine.fingerprint
    return {
        "policy_version": engine.policy_version,
        "fingerprint": fingerprint.to_json() if fingerprint else None,
    }


class WorkerApp:
    """The routes. All state changes happen on the event loop's thread."""

    def __init__(
        self,
        engine: Engine,
        *,
        worker_id: str,
        image_cache_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._worker_id = worker_id
        self._images = ByteCache[bytes](image_cache_bytes, len)
        self._clock = clock
        self._num_in_flight = 0
        self._loading = False

    def app(self) -> FastAPI:
        app = new_app()
        app.add_api_route("/images/{key}", self.put_image, methods=["PUT"])
        app.add_api_route("/generate", self.generate, methods=["POST"])
        app.add_api_route("/health", self.health, methods=["GET"])
        app.add_api_route("/load", self.load, methods=["POST"])
        return app

    async def put_image(self, key: str, request: Request) -> Response:
        """The service has verified the hash."""
        self._images.put(key, await read_body(request, MAX_IMAGE_BYTES))
        return json_response({})

    async def generate(self, request: Request) -> Response:
        chat = ChatRequest.from_json(await read_json(request, MAX_REQUEST_BYTES))
        images = self._collect(chat.image_hashes)
        # no await from here to the submission: weights must not begin to load in between
        if self._loading:
            raise ApiError(409, "not_ready", "the worker is loading weights")
        version = self._engine.policy_version
        result = await self._submit(
            EngineRequest(messages=chat.messages, images=images, sampling=chat.sampling), request
        )
        if self._engine.policy_version != version:
            raise ApiError(500, "mixed_versions", "the weights changed under a request")
        try:
            body = completion_body(
                result,
                chat,
                policy_version=version,
                worker_id=self._worker_id,
                now=self._clock(),
            )
        except ValueError as error:
            text = f"the engine's answer contradicts itself: {error}"
            raise ApiError(500, "engine_error", text) from None
        response = json_response(body)
        response.headers[VERSION_HEADER] = str(version)
        response.headers[BUSY_HEADER] = f"{self._engine.busy_s:.3f}"
        return response

    def _collect(self, hashes: list[str]) -> dict[str, bytes]:
        images = {key: self._images.get(key) for key in hashes}
        found = {key: png for key, png in images.items() if png is not None}
        if len(found) < len(images):
            missing = [key for key in images if key not in found]
            raise ApiError(404, "missing_images", "images are not here (any more)", hashes=missing)
        return found

    async def _submit(self, request: EngineRequest, caller: Request) -> EngineResult:
        future: Future[EngineResult] = self._engine.submit(request)
        self._num_in_flight += 1
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
        gone = asyncio.create_task(_cancel_without(caller, future))
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        except ContextLengthError as error:
            raise ApiError(400, "context_length_exceeded", str(error)) from None
        except PolicyError as error:
            raise bad_request(str(error)) from None
        except asyncio.CancelledError:
            if not future.cancelled():
                raise
            raise ApiError(499, "cancelled", "the connection was closed") from None
        finally:
            gone.cancel()

    def _leave(self) -> None:
        self._num_in_flight -= 1

    async def health(self) -> Response:
        """That this process answers at all, and how its engine does."""
        return json_response({"busy_s": self._engine.busy_s, **asdict(self._engine.load)})

    async def load(self, request: Request) -> Response:
        """409 while requests are in flight; 422 where the weights are refused and the old ones stay
        in service; else the version that the engine has now."""
        body = await read_json(request, MAX_REQUEST_BYTES)
        if self._loading or self._num_in_flight:
            raise ApiError(409, "busy", f"{self._num_in_flight} requests are in flight")
        self._loading = True
        weights = WeightsRef(policy_version=body["policy_version"], path=body["path"])
        try:
            await asyncio.to_thread(self._engine.load_weights, weights)
        except PolicyError as error:
            raise ApiError(409, "busy", str(error)) from None
        except DartError as error:
            raise ApiError(422, "load_failed", str(error)) from None
        finally:
            self._loading = False
        return json_response(engine_facts(self._engine))


async def _cancel_without(caller: Request, future: Future[EngineResult]) -> None:
    """Whoever closes the connection wants no answer: the engine need not go on."""
    while (await caller.receive())["type"] != "http.disconnect":
        pass
    future.cancel()


def _exit_with_parent() -> None:
    """End this process when standard input closes. A thread, so that a long load does not delay it;
    without clean-up, because nobody is left to be told."""

    def watch() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _claim_stdout() -> int:
    """Keep standard output for the one line; prints of libraries go to standard error."""
    report = os.dup(1)
    os.dup2(2, 1)
    return report


async def _serve(settings: WorkerSettings, engine: Engine, report: int) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(settings.socket)
    worker = WorkerApp(
        engine,
        worker_id=settings.worker_id,
        image_cache_bytes=settings.image_cache_bytes,
    )
    server = HttpServer(worker.app(), sock)
    await server.start()
    _tell(report, engine_facts(engine))
    await server.wait()


def _tell(report: int, message: dict[str, Any]) -> None:
    os.write(report, json.dumps(message).encode() + b"\n")


def main(argument: str) -> int:
    report = _claim_stdout()
    _exit_with_parent()
    settings = WorkerSettings(**json.loads(argument))
    form = f"%(asctime)s %(levelname)s {settings.worker_id}: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=form)
    try:
        engine = build_engine(settings)
    except DartError as error:
        _tell(report, {"error": str(error)})
        return 1
    asyncio.run(_serve(settings, engine, report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
