"""The client of the rollout service. A screenshot travels once, whatever the number of prompts that
show it; the service says when it has forgotten one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import TracebackType
from typing import Any

import aiohttp

from dart_gui.errors import AuthError, ContextLengthError, PolicyError
from dart_gui.rollout.states import WorkerState
from dart_gui.rollout.transfers import Transfers
from dart_gui.types import Completion, SamplingParams, WeightsRef

_MAX_FORGOTTEN = 5  # times that the service may have forgotten screenshots of one request
_RETRY_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    worker_id: str
    state: WorkerState
    policy_version: int
    num_in_flight: int
    num_completed: int
    busy_s: float  # seconds in which the worker's model was computing, over all restarts
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    workers: list[WorkerStatus]
    desired_version: int
    queue_size: int  # requests that no worker has taken yet
    update_error: str | None = None

    @property
    def min_version(self) -> int:
        """Of the workers that run; a worker that starts comes up with the desired version."""
        down = (WorkerState.STARTING, WorkerState.DEAD)
        versions = [worker.policy_version for worker in self.workers if worker.state not in down]
        return min(versions, default=self.desired_version)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: dict[str, Any]

    @property
    def error(self) -> dict[str, Any]:
        error = self.body.get("error")
        return error if isinstance(error, dict) else {}


class _UnavailableError(PolicyError):
    """Nobody listens, or the service is on its way down or up, or has too much to do: worth another
    try after ``retry_after_s``."""

    def __init__(self, text: str, retry_after_s: float = _RETRY_S) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class RolloutClient:
    """An async context manager. ``timeout_s`` bounds each call, its repetitions included.

    A completion is a function of its request and seed, so one that met a service that is being
    restarted is asked for again. Every failure is a ``PolicyError`` (``ContextLengthError`` where
    the prompt does not fit), a wrong token an ``AuthError``.
    """

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"}
        self._timeout_s = timeout_s
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._transfers = Transfers(self._put)

    async def __aenter__(self) -> RolloutClient:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._transfers.close()
        if self._session is not None:
            await self._session.close()

    async def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Mapping[str, bytes],
        sampling: SamplingParams,
        *,
        trajectory_id: str,
    ) -> Completion:
        """One answer. ``images`` holds the PNG of each "sha256:<hex>" that the messages name.

        Raises:
            ContextLengthError: the prompt does not fit the model's context.
            PolicyError: no answer within ``timeout_s``, or a refusal.
            AuthError: the token is wrong.
        """
        body = {"messages": messages, "logprobs": True, "return_token_ids": True}
        body |= asdict(sampling)
        try:
            async with asyncio.timeout(self._timeout_s):
                headers = {
                    "X-Trajectory-Id": trajectory_id,
                    "X-Request-Timeout-S": f"{self._timeout_s:g}",
                }
                return await self._complete(body, images, headers)
        except TimeoutError:
            raise PolicyError(f"no completion within {self._timeout_s} s") from None

    async def _complete(
        self, body: Mapping[str, Any], images: Mapping[str, bytes], headers: Mapping[str, str]
    ) -> Completion:
        path = "/v1/chat/completions"
        num_forgotten = 0
        while True:
            try:
                await self._transfers.put_unknown(images)
                answer = await self._call("POST", path, json=body, headers=headers)
                if answer.error.get("type") != "missing_images":
                    return _completion(answer)
            except _UnavailableError as error:
                await asyncio.sleep(error.retry_after_s)
                continue
            num_forgotten += 1
            if num_forgotten > _MAX_FORGOTTEN:
                raise PolicyError("the service loses screenshots: raise rollout.image_cache_mb")
            self._forget(answer.error.get("hashes", []), images)

    async def status(self) -> ServiceStatus:
        body = _checked(await self._call("GET", "/status"))
        try:
            names = [field.name for field in fields(WorkerStatus)]
            workers = [
                WorkerStatus(**{name: worker[name] for name in names} | _state(worker))
                for worker in body["workers"]
            ]
            return ServiceStatus(
                workers=workers,
                desired_version=body["desired_version"],
                queue_size=body["queue_size"],
                update_error=body.get("update_error"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PolicyError(f"/status is not that of a rollout service: {error!r}") from None

    async def publish(self, weights: WeightsRef) -> None:
        """Sets the version to serve and returns; :meth:`status` tells when the workers have it."""
        _checked(await self._call("POST", "/weights", json=asdict(weights)))

    async def wait_ready(self, deadline_s: float) -> None:
        """Returns when the service takes requests.

        Raises:
            PolicyError: not within ``deadline_s`` seconds.
            AuthError: the token is wrong.
        """
        deadline = self._clock() + deadline_s
        last = "no answer"
        while True:
            try:
                _checked(await self._call("GET", "/health"))
                return
            except AuthError:
                raise
            except PolicyError as error:
                last = str(error)
            if self._clock() + _RETRY_S > deadline:
                raise PolicyError(
                    f"the rollout service at {self._base_url} was not ready after "
                    f"{deadline_s:.0f} s: {last}"
                )
            await asyncio.sleep(_RETRY_S)

    async def _put(self, key: str, png: bytes) -> None:
        _checked(await self._call("PUT", f"/images/{key}", data=png))

    def _forget(self, hashes: Sequence[str], images: Mapping[str, bytes]) -> None:
        for key in hashes:
            if key not in images:
                raise PolicyError(f"the prompt names the image {key}, which did not come with it")
        self._transfers.forget(hashes)

    async def _call(self, method: str, path: str, **arguments: Any) -> _Answer:
        if self._session is None:
            raise PolicyError("the rollout client is used outside its `async with`")
        url = f"{self._base_url}{path}"
        try:
            async with self._session.request(method, url, **arguments) as response:
                content = await response.json(content_type=None)
        except TimeoutError:
            raise PolicyError(f"{method} {url}: no answer within {self._timeout_s} s") from None
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise _UnavailableError(f"{method} {url}: {reason}") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise PolicyError(f"{method} {url} is not a rollout service: {error}") from None
        return _Answer(response.status, content if isinstance(content, dict) else {})


def parse_completion(body: Mapping[str, Any]) -> Completion:
    """The record of an answer that was asked for with ``logprobs`` and ``return_token_ids``.

    Raises:
        KeyError, TypeError, ValueError: not an answer of this service.
    """
    choice = body["choices"][0]
    return Completion(
        text=whole_characters(choice["message"]["content"]),
        prompt_ids=body["prompt_token_ids"],
        response_ids=choice["token_ids"],
        rollout_logprobs=[float(item["logprob"]) for item in choice["logprobs"]["content"]],
        entropies=body["entropies"],
        image_hashes=body["image_hashes"],
        finish_reason=choice["finish_reason"],
        policy_version=int(body["policy_version"]),
        worker_id=body["worker_id"],
        sampling=SamplingParams(**body["sampling"]),
        masked_token_ids=body["masked_token_ids"],
    )


def whole_characters(text: str) -> str:
    """JSON can carry half of a surrogate pair, which can be neither stored nor sent on."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _state(worker: Mapping[str, Any]) -> dict[str, WorkerState]:
    return {"state": WorkerState(worker["state"])}


def _checked(answer: _Answer) -> dict[str, Any]:
    if answer.status == 200:
        return answer.body
    message = answer.error.get("message", f"HTTP {answer.status}")
    if answer.status in (401, 403):
        raise AuthError(
            f"the rollout service refuses the token: {message}. Give the token of the run "
            "(runs/<run_id>/token) or set rollout.token_file."
        )
    kind = answer.error.get("type")
    if kind == "context_length_exceeded":
        raise ContextLengthError(message)
    if kind in ("shutting_down", "not_ready"):
        raise _UnavailableError(message)
    if answer.status == 429:
        raise _UnavailableError(message, float(answer.error.get("retry_after_s", _RETRY_S)))
    raise PolicyError(f"the rollout service answered {answer.status}: {message}")


def _completion(answer: _Answer) -> Completion:
    body = _checked(answer)
    try:
        return parse_completion(body)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise PolicyError(f"the answer is not a completion of this service: {error!r}") from None
