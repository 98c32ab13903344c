"""The routes of the rollout service, an OpenAI-compatible server in front of N worker processes.

They are, all with a bearer token: ``PUT /images/{sha256}``, ``POST /v1/chat/completions``,
``GET /v1/models``, ``POST /weights``, ``GET /updates``, ``GET /updates/{id}``, ``GET /status``,
``GET /metrics``, ``GET /health``, ``GET /openapi.json``. A screenshot is put once under the hash of its
PNG and named by it afterwards; data URLs work too.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response

from dart_gui.byte_cache import ByteCache
from dart_gui.rollout import openapi
from dart_gui.rollout.chat import MIN_TEMPERATURE, ChatDefaults, ChatRequest, parse_request
from dart_gui.rollout.dispatch import Dispatcher
from dart_gui.rollout.fleet import Fleet
from dart_gui.rollout.httpd import (
    ApiError,
    bad_request,
    json_response,
    read_body,
    read_json,
)
from dart_gui.rollout.images import (
    MAX_IMAGE_BYTES,
    check_png,
    image_hash,
    is_image_hash,
)
from dart_gui.rollout.router import Router
from dart_gui.rollout.states import WorkerSlot, WorkerState
from dart_gui.rollout.telemetry import CONTENT_TYPE, Telemetry
from dart_gui.rollout.updates import UpdateJob, Updates
from dart_gui.rollout.worker import MAX_REQUEST_BYTES
from dart_gui.rollout.worker_process import WorkerAnswer
from dart_gui.types import WeightsRef

log = logging.getLogger(__name__)
_MAX_IMAGES_PER_REQUEST = 64
TIMEOUT_HEADER = "x-request-timeout-s"


class RolloutService:
    """The routes, over a fleet of workers."""

    def __init__(
        self,
        fleet: Fleet,
        router: Router,
        dispatcher: Dispatcher,
        updates: Updates,
        telemetry: Telemetry,
        *,
        defaults: ChatDefaults,
        image_cache_bytes: int,
        on_publish: Callable[[WeightsRef], None],
    ) -> None:
        self._fleet = fleet
        self._router = router
        self._dispatcher = dispatcher
        self._updates = updates
        self._telemetry = telemetry
        self._defaults = defaults
        self._images = ByteCache[bytes](image_cache_bytes, len)
        self._on_publish = on_publish
        self._closing = False

    @property
    def fleet(self) -> Fleet:
        return self._fleet

    @property
    def model(self) -> ChatDefaults:
        return self._defaults

    def add_routes(self, app: FastAPI) -> None:
        app.add_api_route("/images/{key}", self.put_image, methods=["PUT"])
        app.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        app.add_api_route("/v1/models", self.models, methods=["GET"])
        app.add_api_route("/weights", self.publish, methods=["POST"])
        app.add_api_route("/updates", self.list_updates, methods=["GET"])
        app.add_api_route("/updates/{update_id}", self.update, methods=["GET"])
        app.add_api_route("/status", self.status, methods=["GET"])
        app.add_api_route("/metrics", self.metrics, methods=["GET"])
        app.add_api_route("/health", self.health, methods=["GET"])
        app.add_api_route("/openapi.json", self.openapi, methods=["GET"])

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
        answer, _ = await self.complete(
            await read_json(request, MAX_REQUEST_BYTES),
            trajectory_id=request.headers.get("x-trajectory-id", ""),
            timeout_s=_caller_timeout_s(request.headers.get(TIMEOUT_HEADER)),
        )
        return Response(answer.body, status_code=answer.status, media_type="application/json")

    async def complete(
        self, body: dict[str, Any], *, trajectory_id: str, timeout_s: float | None = None
    ) -> tuple[WorkerAnswer, dict[str, bytes]]:
        """The worker's answer to a chat request, and the screenshots of its prompt by hash.

        Raises:
            ApiError: the request is refused, or got no answer in time.
        """
        if self._closing:
            raise ApiError(503, "shutting_down", "the service is shutting down")
        chat, inline = parse_request(body, self._defaults)
        images = self._collect(chat, inline)
        answer = await self._dispatcher.complete(
            chat, images, trajectory_id=trajectory_id, timeout_s=timeout_s
        )
        return answer, images

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
        """Sets what the workers should serve and returns at once: /updates/{id} tells the progress."""
        body = await read_json(request, 2**20)
        version, path = body.get("policy_version"), body.get("path")
        if type(version) is not int or not 0 <= version <= openapi.MAX_VERSION:
            raise bad_request(
                f"policy_version = {version!r:.40} must be an integer from 0 to "
                f"{openapi.MAX_VERSION}"
            )
        # As it came too: a path of ten thousand slashes is a short one once it is made absolute.
        if not isinstance(path, str) or not _is_path(path) or not _is_path(os.path.abspath(path)):
            raise bad_request("path must name a Hugging Face folder")
        weights = WeightsRef(policy_version=version, path=os.path.abspath(path))
        job = self.accept(weights)
        desired_version = self._fleet.desired.policy_version
        answer = {"accepted": job is not None, "desired_version": desired_version}
        return json_response(answer | ({"update_id": job.update_id} if job else {}))

    def accept(self, weights: WeightsRef) -> UpdateJob | None:
        """Begin the update to ``weights``; None where they are not newer than the desired ones."""
        if not self._fleet.publish(weights):
            return None
        self._on_publish(weights)
        return self._updates.begin(weights)

    async def list_updates(self) -> Response:
        return json_response({"updates": [job.to_json() for job in self._updates.all()]})

    async def update(self, update_id: str) -> Response:
        job = self._updates.get(update_id)
        if job is None:
            raise ApiError(404, "invalid_request_error", f"there is no update {update_id!r:.80}")
        workers = [_worker_status(slot) for slot in self._fleet.slots]
        return json_response(job.to_json() | {"workers": workers})

    async def status(self) -> Response:
        return json_response(self.status_body())

    def status_body(self) -> dict[str, Any]:
        return {
            "workers": [_worker_status(slot) for slot in self._fleet.slots],
            "desired_version": self._fleet.desired.policy_version,
            "queue_size": self._router.queue_size,
            "update_error": self._fleet.update_error,
            "num_images": len(self._images),
            "image_bytes": self._images.num_bytes,
            "model": self._defaults.model,
        }

    def updates(self) -> list[UpdateJob]:
        """Oldest first."""
        return self._updates.all()

    async def metrics(self) -> Response:
        text = self._telemetry.render(
            self._fleet.slots,
            self._updates.all(),
            queue_size=self._router.queue_size,
            sticky=self._router.routes,
            desired_version=self._fleet.desired.policy_version,
        )
        return Response(text, media_type=CONTENT_TYPE)

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


def _caller_timeout_s(header: str | None) -> float | None:
    """Seconds that the caller waits; what comes later is computed for nobody."""
    if header is None:
        return None
    try:
        timeout_s = float(header)
    except ValueError:
        timeout_s = math.nan
    if not timeout_s > 0:
        raise bad_request(f"{TIMEOUT_HEADER} = {header!r:.40} must be seconds above 0")
    return timeout_s


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
        "kv_pressure": slot.kv_pressure,
        "max_in_flight": slot.max_in_flight,
        "prefix_queries": slot.prefix_queries,
        "prefix_hits": slot.prefix_hits,
    }
