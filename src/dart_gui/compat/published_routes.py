"""The routes of the published model service in front of ours, with its shapes and its errors (HTTP 500
with ``detail``, whatever was wrong)."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp

from dart_gui.compat.disk import PublishedFolder, check_step
from dart_gui.compat.messages import to_chat, to_published
from dart_gui.compat.torch_file import StepData
from dart_gui.compat.url_token import UrlToken
from dart_gui.config import CompatConfig
from dart_gui.errors import DartError, DataError, PolicyError, boundary
from dart_gui.rollout.httpd import ApiError, json_response, read_json
from dart_gui.rollout.routes import RolloutService
from dart_gui.rollout.states import WorkerSlot, WorkerState
from dart_gui.rollout.worker import MAX_REQUEST_BYTES
from dart_gui.types import WeightsRef

log = logging.getLogger(__name__)
_SMALL = 2**20
Handler = Callable[..., Awaitable[Any]]


def end_service() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class PublishedRoutes:
    """An extension of :func:`dart_gui.rollout.service.serve`."""

    def __init__(
        self,
        config: CompatConfig,
        *,
        model_path: str,
        shut_down: Callable[[], None] = end_service,
    ) -> None:
        self._config = config
        self._model_path = model_path
        self._shut_down = shut_down
        self._warned: set[str] = set()

    def wrap(self, app: ASGIApp) -> ASGIApp:
        return UrlToken(app) if self._config.token_in_url else app

    def add_routes(self, app: FastAPI, service: RolloutService, url: str) -> None:
        self._service, self._url = service, url
        routes: list[tuple[str, str, Handler]] = [
            ("GET", "/", self._root),
            ("POST", "/generate", self._generate),
            ("POST", "/tokenize", self._tokenize),
            ("POST", "/save", self._save),
            ("POST", "/reload", self._reload),
            ("POST", "/add_service_by_id", self._add),
            ("POST", "/remove_service_by_id", self._remove),
            ("GET", "/status", self._status),
            ("GET", "/endpoints", self._endpoints),
            ("GET", "/checkpoint_info", self._checkpoint_info),
            ("GET", "/gpu_info", self._gpu_info),
            ("POST", "/shutdown", self._shutdown),
        ]
        if self._config.get_shutdown:
            routes.append(("GET", "/shutdown", self._shutdown))
        for method, path, handler in routes:
            app.add_api_route(path, _with_detail(handler), methods=[method])

    async def _root(self, request: Request) -> Any:
        return {"message": "Model Service is running."}

    # --- generation ------------------------------------------------------------------------

    async def _generate(self, request: Request) -> Any:
        body = await read_json(request, MAX_REQUEST_BYTES)
        parameters = _object(body, "parameters")
        folder = self._folder(parameters)
        step = check_step(parameters.get("step", 0)) if folder else 0
        chat, ignored = to_chat(body.get("messages"), parameters)
        self._warn(ignored)
        trajectory_id = f"{parameters.get('task_id', '')}_{parameters.get('trace_id', '')}"
        answer, images = await self._service.complete(
            chat, trajectory_id=trajectory_id if "trace_id" in parameters else ""
        )
        if answer.status != 200:
            raise PolicyError(answer.error().get("message", f"HTTP {answer.status}"))
        completion = json.loads(answer.body)
        if folder is not None:
            await asyncio.to_thread(_save_step, folder, step, completion, images)
        path = self._path_of(completion["policy_version"])
        return to_published(completion, ckpt_path=path, ignored=ignored)

    def _folder(self, names: dict[str, Any]) -> PublishedFolder | None:
        if not self._config.save_dir:
            return None
        return PublishedFolder(
            Path(self._config.save_dir), names.get("task_id", ""), names.get("trace_id", "")
        )

    def _warn(self, ignored: list[str]) -> None:
        for name in set(ignored) - self._warned:
            self._warned.add(name)
            log.warning(
                "parameters of /generate: %s has no effect, because no trainer here models it", name
            )

    async def _tokenize(self, request: Request) -> Any:
        prompt = (await read_json(request, MAX_REQUEST_BYTES)).get("prompt")
        if not isinstance(prompt, str):
            raise DataError(f"prompt = {prompt!r:.40} must be a text")
        tokens = await asyncio.to_thread(_token_ids, Path(self._model_path), prompt)
        limit = self._service.model.max_context
        return {"count": len(tokens), "max_model_len": limit, "tokens": tokens}

    async def _save(self, request: Request) -> Any:
        body = await read_json(request, MAX_REQUEST_BYTES)
        folder = self._folder(body)
        messages, reward = body.get("messages"), body.get("reward")
        if not isinstance(messages, list):
            raise DataError(f"messages = {messages!r:.40} must be a list")
        if isinstance(reward, bool) or not isinstance(reward, int | float):
            raise DataError(f"reward = {reward!r:.40} must be a number")
        if not math.isfinite(reward):
            raise DataError(f"reward = {reward} must be finite")
        if folder is None:
            return {"status": "skipped"}
        await asyncio.to_thread(folder.save_end, messages, float(reward))
        return {"status": "success"}

    # --- weights and workers ---------------------------------------------------------------

    async def _reload(self, request: Request) -> Any:
        """``batch_size`` has no effect: ``rollout.max_unavailable`` says how many update at once."""
        path = (await read_json(request, _SMALL)).get("new_ckpt_path")
        folder = check_checkpoint(path, self._config.checkpoint_roots)
        version = self._service.fleet.desired.policy_version + 1
        job = self._service.accept(WeightsRef(policy_version=version, path=str(folder)))
        assert job is not None  # no await since the version was read
        message = "Model rolling reload process initiated successfully."
        return {"message": message, "update_id": job.update_id}

    async def _add(self, gpu_id: int) -> Any:
        self._service.fleet.hold(self._slot(gpu_id), False)
        return {"message": f"Service on GPU {gpu_id} is added."}

    async def _remove(self, gpu_id: int) -> Any:
        self._service.fleet.hold(self._slot(gpu_id), True)
        return {"message": f"Service on GPU {gpu_id} is removed once it is idle."}

    def _slot(self, gpu_id: int) -> WorkerSlot:
        slots = self._service.fleet.slots
        if not 0 <= gpu_id < len(slots):
            raise DataError(f"gpu_id = {gpu_id}: there are the workers 0 to {len(slots) - 1}")
        return slots[gpu_id]

    async def _status(self, request: Request) -> Any:
        """Our own status too: the two have no key in common."""
        fleet = self._service.fleet
        active = [
            (index, slot)
            for index, slot in enumerate(fleet.slots)
            if slot.state not in (WorkerState.STARTING, WorkerState.DEAD)
        ]
        instances = [
            {
                "gpu_id": index,
                "port": int(self._url.rpartition(":")[2]),
                "endpoint": self._url,
                "ckpt_path": self._path_of(slot.policy_version),
                "requests_in_flight": slot.num_in_flight,
                "pid": fleet.process(slot).pid,
            }
            for index, slot in active
        ]
        return self._service.status_body() | {
            "replicas_configured": len(fleet.slots),
            "active_services_count": len(active),
            "instances": instances,
        }

    async def _endpoints(self, request: Request) -> Any:
        """The workers have no addresses of their own: each is reached through the service."""
        status = await self._status(request)
        return {"endpoints": [instance["endpoint"] for instance in status["instances"]]}

    async def _checkpoint_info(self, request: Request) -> Any:
        current = self._service.fleet.desired.policy_version
        jobs = [job.weights.policy_version for job in self._service.updates()]
        last = max((version for version in jobs if version < current), default=0)
        return {
            "current_ckpt_path": self._path_of(current),
            "last_ckpt_path": self._path_of(last) if current else None,
        }

    def _path_of(self, version: int) -> str:
        desired = self._service.fleet.desired
        known = {job.weights.policy_version: job.weights.path for job in self._service.updates()}
        known[desired.policy_version] = desired.path
        return known.get(version, self._model_path)

    async def _gpu_info(self, request: Request) -> Any:
        return await _gpus()

    async def _shutdown(self, request: Request) -> Any:
        asyncio.get_running_loop().call_later(0.1, self._shut_down)  # after this answer
        return {"message": "All services are being shut down."}


def check_checkpoint(path: Any, roots: list[str]) -> Path:
    """The real folder that ``path`` names, inside one of ``roots``.

    Raises:
        DataError: it is elsewhere, or not a folder.
    """
    if not isinstance(path, str) or not path or "\0" in path:
        raise DataError(f"new_ckpt_path = {path!r:.80} must name a folder")
    folder = Path(path).resolve()
    if not any(folder.is_relative_to(Path(root).resolve()) for root in roots):
        raise DataError(
            f"new_ckpt_path {folder} is not inside compat.checkpoint_roots ({', '.join(roots)}): add "
            "the folder under which the trainer writes its checkpoints"
        )
    if not folder.is_dir():
        raise DataError(f"new_ckpt_path {folder} is not a folder")
    return folder


def _with_detail(handler: Handler) -> Handler:
    async def by_request(request: Request) -> Response:
        try:
            return json_response(await handler(request))
        except (DartError, ApiError) as error:
            return _detail(error)

    async def by_gpu_id(gpu_id: int) -> Response:
        try:
            return json_response(await handler(gpu_id))
        except DartError as error:
            return _detail(error)

    return by_gpu_id if handler.__name__ in ("_add", "_remove") else by_request


def _detail(error: Exception) -> Response:
    status = error.status if isinstance(error, ApiError) and error.status == 429 else 500
    response = json_response({"detail": str(error)}, status=status)
    if isinstance(error, ApiError) and "retry_after_s" in error.extra:
        response.headers["Retry-After"] = str(math.ceil(error.extra["retry_after_s"]))
    return response


def _object(body: dict[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name, {})
    if not isinstance(value, dict):
        raise DataError(f"{name} = {value!r:.40} must be an object")
    return value


def _save_step(
    folder: PublishedFolder, step: int, completion: dict[str, Any], images: dict[str, bytes]
) -> None:
    choice = completion["choices"][0]
    logprobs = [item["logprob"] for item in choice["logprobs"]["content"]]
    hashes = completion["image_hashes"]
    newest = images[hashes[-1]] if hashes else None
    folder.save_step(step, newest, StepData(logprobs, choice["token_ids"]))


def _token_ids(folder: Path, prompt: str) -> list[int]:
    with boundary(DataError, f"reading the tokenizer of {folder}"):
        from tokenizers import Tokenizer

        return list(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(prompt).ids)


async def _gpus() -> list[dict[str, Any]]:
    """A GPU is available while at most a tenth of its memory is used. None without nvidia-smi."""
    executable = shutil.which("nvidia-smi")
    if executable is None:
        return []
    query = ("--query-gpu=index,memory.used,memory.total", "--format=csv,noheader,nounits")
    process = await asyncio.create_subprocess_exec(
        executable, *query, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    rows = [[int(cell) for cell in line.split(",")] for line in output.decode().splitlines()]
    return [{"gpu_id": index, "is_available": used <= total / 10} for index, used, total in rows]
