"""The service's side of one worker: its process, and the calls to it over the Unix socket."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp

import dart_gui
from dart_gui.errors import PolicyError, SetupError, boundary
from dart_gui.rollout.chat import ChatRequest
from dart_gui.rollout.fingerprint import Fingerprint
from dart_gui.rollout.httpd import ApiError
from dart_gui.rollout.states import WorkerSlot
from dart_gui.rollout.transfers import Transfers
from dart_gui.rollout.worker import BUSY_HEADER, VERSION_HEADER, WorkerSettings
from dart_gui.types import WeightsRef

log = logging.getLogger(__name__)
START_TIMEOUT_S = 300.0
LOAD_TIMEOUT_S = 900.0
_STOP_TIMEOUT_S = 2.0


class WorkerGoneError(PolicyError):
    """The connection to a worker broke: the request may be sent again elsewhere."""


class RequestAbortedError(PolicyError):
    """The request was taken from a worker that is to take new weights: it is to be sent again."""


class LoadRefusedError(PolicyError):
    """The worker keeps its old weights."""


class LoadBusyError(PolicyError):
    """The worker still works at a request."""


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    status: int
    body: bytes
    policy_version: int | None = None  # that the worker says it answered at

    def fault(self, expected_version: int) -> str:
        """Why this is no answer to a completion, empty where it is one. The body is not parsed: it
        is whole by its length, and what it says is checked where it is used."""
        if self.status >= 500:
            return f"HTTP {self.status}: {self.error().get('message', '')}"
        if self.status != 200:
            return ""
        if not (self.body.startswith(b'{"id":') and self.body.endswith(b"}")):
            return f"something else than a completion: {self.body[:60]!r}"
        if self.policy_version != expected_version:
            return f"version {self.policy_version} instead of {expected_version}"
        return ""

    def error(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.body)["error"])
        except (ValueError, KeyError, TypeError):
            return {"type": "internal_error", "message": self.body[:300].decode(errors="replace")}


class WorkerProcess:
    """One process, from its start to its end. A restart makes a new one for the same slot."""

    def __init__(self, slot: WorkerSlot, settings: WorkerSettings) -> None:
        self.slot = slot
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._http: aiohttp.ClientSession | None = None
        self._transfers = Transfers(self._put)
        self._busy_before = slot.busy_s
        self._aborting = False  # from abort() to the end of the next load
        self._abortable: set[asyncio.Task[WorkerAnswer]] = set()
        self.fingerprint: Fingerprint | None = None  # of the weights in service

    @property
    def _start_timeout_s(self) -> float:
        """A server's own time to start, where there is one, and ours around it."""
        return START_TIMEOUT_S + float((self._settings.vllm or {}).get("start_timeout_s", 0.0))

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self, weights: WeightsRef) -> int:
        """Returns the version that the worker reports once it takes requests.

        Raises:
            SetupError: it did not come up, with its own explanation where it gave one.
        """
        settings = replace(
            self._settings, model_path=weights.path, policy_version=weights.policy_version
        )
        with boundary(SetupError, "starting the process of a rollout worker"):
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "dart_gui.rollout.worker",
                json.dumps(asdict(settings)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=_environment(settings.threads),
                # Ctrl-C in a terminal goes to the group: the service must end first, and in order
                start_new_session=True,
            )
        report = await self._first_line()
        if "policy_version" not in report:
            raise SetupError(
                report.get("error")
                or "a rollout worker ended before it was ready; its traceback "
                "is in the log of the rollout service"
            )
        connector = aiohttp.UnixConnector(path=settings.socket, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        self._http = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._note(report)

    def _note(self, facts: dict[str, Any]) -> int:
        tree = facts.get("fingerprint")
        self.fingerprint = Fingerprint.from_json(tree) if tree else None
        return int(facts["policy_version"])

    async def _first_line(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(self._start_timeout_s):
                line = await self._process.stdout.readline()
            return dict(json.loads(line)) if line else {}
        except TimeoutError:
            raise SetupError(
                f"the worker was not ready after {self._start_timeout_s:.0f} s"
            ) from None
        except ValueError:
            return {}

    async def generate(
        self, request: ChatRequest, images: Mapping[str, bytes], *, abortable: bool = False
    ) -> WorkerAnswer:
        """Answered whole by this worker, or an exception. To cancel this call closes its connection,
        at which the worker's engine drops the request.

        Raises:
            WorkerGoneError: the worker died or its connection broke.
            RequestAbortedError: :meth:`abort` was called, and the request is ``abortable``.
        """
        if not abortable:
            return await self._generate(request, images)
        if self._aborting:
            raise RequestAbortedError(f"{self.slot.worker_id} is to take new weights")
        call = asyncio.create_task(self._generate(request, images))
        self._abortable.add(call)
        try:
            return await call
        except asyncio.CancelledError:
            if call in self._abortable or _is_cancelled():
                raise  # by our caller
            raise RequestAbortedError(f"{self.slot.worker_id} takes new weights") from None
        finally:
            self._abortable.discard(call)

    def abort(self) -> None:
        """Drop the requests under way that are abortable, and refuse further ones until a load."""
        self._aborting = True
        for call in self._abortable:
            call.cancel()
        self._abortable.clear()

    async def _generate(self, request: ChatRequest, images: Mapping[str, bytes]) -> WorkerAnswer:
        body = json.dumps(request.to_json(), separators=(",", ":")).encode()
        for _ in range(3):
            await self._transfers.put_unknown(images)
            answer = await self._call("POST", "/generate", body)
            if answer.status != 404 or answer.error().get("type") != "missing_images":
                return answer
            self._transfers.forget(answer.error().get("hashes", ()))
        raise ApiError(500, "internal_error", "the worker's image cache is too small for a prompt")

    async def load(self, weights: WeightsRef) -> int:
        """Returns the version that the worker reports afterwards.

        Raises:
            LoadRefusedError: the old weights stay in service.
            LoadBusyError: requests are in flight there.
            WorkerGoneError: it died, or took longer than LOAD_TIMEOUT_S.
        """
        body = json.dumps(asdict(weights)).encode()
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                answer = await self._call("POST", "/load", body)
        except TimeoutError:
            raise WorkerGoneError(f"no answer to a load for {LOAD_TIMEOUT_S:.0f} s") from None
        self._aborting = False
        if answer.status == 200:
            return self._note(json.loads(answer.body))
        kind = LoadBusyError if answer.status == 409 else LoadRefusedError
        raise kind(answer.error().get("message", ""))

    async def look(self) -> None:
        """Ask the worker how it does, and note it in the slot.

        Raises:
            WorkerGoneError: no answer, or one that makes no sense.
        """
        answer = await self._call("GET", "/health", b"")
        try:
            facts = json.loads(answer.body)
            self.slot.kv_pressure = float(facts["kv_pressure"])
            self.slot.prefix_queries = int(facts["prefix_queries"])
            self.slot.prefix_hits = int(facts["prefix_hits"])
            self.slot.busy_s = self._busy_before + float(facts["busy_s"])
        except (ValueError, KeyError, TypeError) as error:
            raise WorkerGoneError(f"{self.slot.worker_id}: its health is {error!r}") from None

    async def _put(self, key: str, png: bytes) -> None:
        answer = await self._call("PUT", f"/images/{key}", png)
        if answer.status != 200:
            raise WorkerGoneError(f"an image was answered with {answer.status}")

    async def _call(self, method: str, path: str, body: bytes) -> WorkerAnswer:
        if self._http is None or self._http.closed:
            raise WorkerGoneError(f"{self.slot.worker_id} is not running")
        try:
            async with self._http.request(method, f"http://worker{path}", data=body) as response:
                content = await response.read()
        except (aiohttp.ClientError, OSError) as error:
            raise WorkerGoneError(
                f"{self.slot.worker_id}: {error or type(error).__name__}"
            ) from None
        if busy := response.headers.get(BUSY_HEADER):
            self.slot.busy_s = self._busy_before + float(busy)
        version = response.headers.get(VERSION_HEADER, "")
        return WorkerAnswer(response.status, content, int(version) if version.isdigit() else None)

    async def wait(self) -> int:
        """The exit status of the process."""
        assert self._process is not None
        return await self._process.wait()

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def close(self) -> None:
        """End the process: the closed pipe asks, the kill insists."""
        await self._transfers.close()
        if self._http is not None:
            await self._http.close()
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        Path(self._settings.socket).unlink(missing_ok=True)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _environment(threads: int) -> dict[str, str]:
    env = dict(os.environ)
    package_root = str(Path(dart_gui.__file__).parents[1])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, env.get("PYTHONPATH")]))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        env[name] = str(threads)
    return env
