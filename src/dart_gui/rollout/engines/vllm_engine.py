"""Engine ``vllm``: a vLLM server in a process of its own, behind the seam of every other engine.

The server renders, samples and batches; this side translates, counts, and swaps the weights of the
running server (``vllm_weights`` knows how), then a check that what came is what was meant. A
load that fails goes back to the weights before it, in place where the server lives, by a restart
where it does not.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar

from dart_gui.errors import ContextLengthError, DataError, PolicyError, SetupError
from dart_gui.model.folder import check_model_folder, read_token_facts
from dart_gui.rollout.engines.base import EngineLoad, EngineRequest, EngineResult
from dart_gui.rollout.engines.busy import BusyTime
from dart_gui.rollout.engines.vllm_api import ServerFailedError, ServerGoneError, VllmApi
from dart_gui.rollout.engines.vllm_chat import ChatTranslator
from dart_gui.rollout.engines.vllm_probe import take_fingerprint, uses_processed_logprobs
from dart_gui.rollout.engines.vllm_server import (
    SERVED_NAME,
    ModelSettings,
    VllmServer,
    VllmSettings,
)
from dart_gui.rollout.engines.vllm_weights import Served, rank_for, swapping_for
from dart_gui.rollout.fingerprint import Fingerprint
from dart_gui.types import WeightsRef

log = logging.getLogger(__name__)
MAX_TRIES = 3
_POLL_S = 0.2
_WATCH_S = 2.0
T = TypeVar("T")


def end_process() -> None:
    """A server that died leaves nothing to serve with: the worker ends, its requests are sent again
    elsewhere, and the service starts it anew."""
    os.kill(os.getpid(), signal.SIGTERM)


class VllmEngine:
    """See :class:`dart_gui.rollout.engines.base.Engine`.

    Raises:
        SetupError: the server did not start, or does not serve what it should.
        ConfigError: the model folder is not one.
    """

    def __init__(
        self,
        model: ModelSettings,
        settings: VllmSettings,
        *,
        policy_version: int,
        request_timeout_s: float = 3600.0,
        on_failure: Callable[[], None] = end_process,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_model_folder(model.folder)
        self._model = replace(model, lora_rank=rank_for(model.folder, model.lora_rank))
        self._settings = settings
        self._request_timeout_s = request_timeout_s
        self._on_failure = on_failure
        self._clock = clock
        self._swapping_by = swapping_for(model.folder, self._model.lora_rank)
        weights = WeightsRef(policy_version=policy_version, path=str(model.folder))
        self._served = self._swapping_by.check(weights)
        self._lock = threading.Lock()
        self._busy = BusyTime(clock)
        self._fingerprint = Fingerprint("", (), ())
        self._failed = ""
        self._load = EngineLoad()
        self._swapping = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        self._server = None if settings.url else VllmServer(settings)
        try:
            self._api = self._await(self._connect())
            self._start()
        except BaseException:
            self.close()
            raise
        self._watching = asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    # --- the face of an engine ---------------------------------------------------------------

    @property
    def policy_version(self) -> int:
        return self._served.weights.policy_version

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the weights in service, as the server has them."""
        return self._fingerprint

    @property
    def load(self) -> EngineLoad:
        return self._load

    @property
    def busy_s(self) -> float:
        return self._busy.total_s

    @property
    def server_running(self) -> bool:
        return self._server is None or self._server.running

    def submit(self, request: EngineRequest) -> Future[EngineResult]:
        self._busy.enter()
        future: Future[EngineResult] = Future()
        self._loop.call_soon_threadsafe(self._begin_answer, request, future)
        return future

    def _begin_answer(self, request: EngineRequest, future: Future[EngineResult]) -> None:
        """On the loop. To cancel ``future`` closes the connection, at which vLLM ends the request."""
        task = self._loop.create_task(self._answer(request))

        def stop(cancelled: Future[EngineResult]) -> None:
            if cancelled.cancelled():
                self._loop.call_soon_threadsafe(task.cancel)

        def pass_on(done: asyncio.Task[EngineResult]) -> None:
            # leave first: whoever sees the result may load weights at once
            self._busy.leave()
            error = None if done.cancelled() else done.exception()
            if done.cancelled() or not future.set_running_or_notify_cancel():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(done.result())

        task.add_done_callback(pass_on)
        future.add_done_callback(stop)

    def load_weights(self, weights: WeightsRef) -> None:
        self._busy.check_drained()
        self._swapping = True
        try:
            self._load_weights(weights)
        finally:
            self._swapping = False

    def _load_weights(self, weights: WeightsRef) -> None:
        served = self._swapping_by.check(weights)
        try:
            found = self._await(self._swap(served))
            if is_without_effect(served, found, self._served, self._fingerprint):
                raise DataError("the server says that it took them, and serves what it did before")
        except (DataError, PolicyError) as error:
            self._go_back(served, error)
            raise DataError(f"cannot take the weights {weights.path}: {error}") from None
        before, self._served, self._fingerprint = self._served, served, found
        if before.model != served.model:
            self._await(self._swapping_by.drop(self._api, before))

    def close(self) -> None:
        if not self._loop.is_running():
            return
        if hasattr(self, "_watching"):
            self._watching.cancel()
        if hasattr(self, "_api"):
            self._await(self._api.close())
        if self._server is not None:
            self._server.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    # --- start -------------------------------------------------------------------------------

    def _start(self) -> None:
        self._translator = ChatTranslator(
            read_token_facts(self._served.folder),
            model=self._served_name(),
            top_logprobs=self._settings.top_logprobs,
        )
        self._fingerprint = self._await(self._begin(self._served))

    async def _connect(self) -> VllmApi:
        url = f"unix:{self._server.socket}" if self._server is not None else self._settings.url
        return VllmApi(url, timeout_s=self._request_timeout_s)

    def _served_name(self) -> str:
        if self._server is not None:
            self._server.start(replace(self._model, folder=self._served.folder))
        self._await(self._until_healthy())
        model = self._await(self._api.model())
        if self._server is None and int(model.get("max_model_len") or 0) < self._model.max_context:
            raise SetupError(
                f"the server at {self._settings.url} serves a context of "
                f"{model.get('max_model_len')} tokens; rollout.max_context = "
                f"{self._model.max_context}: start it with a larger --max-model-len"
            )
        return SERVED_NAME if self._server is not None else str(model["id"])

    async def _until_healthy(self) -> None:
        where = self._settings.url or "vllm serve"
        deadline = self._clock() + self._settings.start_timeout_s
        while not await self._api.healthy():
            if self._server is not None and not self._server.running:
                raise SetupError(
                    f"{where} ended before it was ready; its own messages are in the log of the "
                    "rollout service"
                )
            if self._clock() > deadline:
                raise SetupError(
                    f"{where} was not ready after vllm.start_timeout_s = "
                    f"{self._settings.start_timeout_s:g} s"
                )
            await asyncio.sleep(_POLL_S)

    async def _begin(self, served: Served) -> Fingerprint:
        """The server has the wanted weights from here on, whoever served from it before."""
        await self._swapping_by.begin(self._api, served, adopted=self._server is None)
        if not await uses_processed_logprobs(self._api, self._translator):
            raise SetupError(
                f"the server at {self._settings.url} reports log-probabilities before temperature "
                "and masks: start it with --logprobs-mode processed_logprobs"
            )
        found = await take_fingerprint(self._api, self._translator, served)
        if served.adapter:
            base = replace(served, adapter=False, is_base=True, digest="")
            without = await take_fingerprint(self._api, self._translator, base)
            if is_without_effect(served, found, base, without):
                raise SetupError(
                    f"the server took the adapter {served.folder}, and serves its base"
                )
        return found

    # --- requests ----------------------------------------------------------------------------

    async def _answer(self, request: EngineRequest) -> EngineResult:
        if self._failed:
            raise PolicyError(self._failed)
        body = self._translator.body(request, self._served.label, self._served.model)
        for tries in range(1, MAX_TRIES + 1):
            try:
                result = self._translator.result(await self._api.chat(body), request)
                return self._fitting(result, request)
            except ServerGoneError as error:
                if not await self._api.healthy():
                    raise self._fail(str(error)) from None
                last: PolicyError = error
            except ServerFailedError as error:
                last = error
            log.warning("try %d of %d: %s", tries, MAX_TRIES, last)
        await self._examine(last)
        raise PolicyError(f"no answer after {MAX_TRIES} tries: {last}")

    def _fitting(self, result: EngineResult, request: EngineRequest) -> EngineResult:
        """vLLM shortens a reply in silence where prompt and reply together exceed its context."""
        if len(result.prompt_ids) + request.sampling.max_tokens > self._model.max_context:
            raise ContextLengthError(
                f"a prompt of {len(result.prompt_ids)} tokens and {request.sampling.max_tokens} to "
                f"come exceed rollout.max_context = {self._model.max_context}"
            )
        return result

    async def _examine(self, reason: PolicyError) -> None:
        """Is it the request, or the server? A server that fails the known prompt is given up."""
        try:
            found = await take_fingerprint(self._api, self._translator, self._served)
        except PolicyError as error:
            raise self._fail(f"{reason}; and then {error}") from None
        if difference := found.difference(self._fingerprint):
            raise self._fail(
                f"{reason}; and its weights are no longer those of the load: {difference}"
            )

    def _fail(self, reason: str) -> PolicyError:
        if not self._failed:
            log.error("the vLLM server is given up: %s", reason)
            self._failed = f"the vLLM server is given up: {reason}"
            self._on_failure()
        return PolicyError(self._failed)

    async def _watch(self) -> None:
        """A server that dies while nobody asks anything is noticed too."""
        while not self._failed:
            await asyncio.sleep(_WATCH_S)
            if self._swapping:  # a restart is a death that is meant
                continue
            if not self.server_running:
                self._fail("it ended")
                return
            with suppress(PolicyError):  # requests, not looks, decide whether it is well
                self._load = await self._api.load()

    # --- weights -----------------------------------------------------------------------------

    async def _swap(self, served: Served) -> Fingerprint:
        started = self._clock()
        await self._swapping_by.take(self._api, served)
        taken = self._clock()
        found = await take_fingerprint(self._api, self._translator, served)
        load_s, check_s = taken - started, self._clock() - taken
        log.info("weights %s: load %.2f s, check %.2f s", served.label, load_s, check_s)
        return found

    def _go_back(self, refused: Served, reason: Exception) -> None:
        """The weights before a load that failed, verified; at the cost of a restart if need be.

        Raises:
            PolicyError: they are gone too, and with them this engine.
        """
        log.error("going back to version %d: %s", self.policy_version, reason)
        try:
            found = self._await(self._swap(self._served))
            if not (difference := found.difference(self._fingerprint)):
                if refused.model != self._served.model:
                    self._await(self._swapping_by.drop(self._api, refused))
                return
            log.error("the old weights are others now: %s", difference)
        except (DataError, PolicyError) as error:
            log.error("the old weights could not be reloaded: %s", error)
        if self._server is None:
            raise self._fail("its weights are in an unknown state after a load that failed")
        self._restart()

    def _restart(self) -> None:
        assert self._server is not None
        self._server.stop()
        try:
            self._await(self._api.close())
            self._api = self._await(self._connect())
            self._start()
        except (DataError, PolicyError, SetupError) as error:
            raise self._fail(f"the restart at the old weights failed: {error}") from None

    def _await(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def is_without_effect(new: Served, found: Fingerprint, old: Served, before: Fingerprint) -> bool:
    """Whether a server that should have gone from ``old`` to ``new`` answers as if it had not."""
    if new.digest == old.digest or (new.is_base and old.is_base):
        return False
    if new.adapter or old.adapter:  # not in the checksum of the parameters
        return (found.ids, found.logprobs) == (before.ids, before.logprobs)
    return found == before
