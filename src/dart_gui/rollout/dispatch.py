"""One request from its place in the queue to its answer, sent again whole where a worker dies, or gives
it back for an update."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from dart_gui.rollout.chat import ChatRequest
from dart_gui.rollout.fleet import Fleet
from dart_gui.rollout.httpd import ApiError
from dart_gui.rollout.router import QueueFullError, QueueTimeoutError, Router
from dart_gui.rollout.states import WorkerSlot
from dart_gui.rollout.telemetry import Telemetry
from dart_gui.rollout.worker_process import (
    RequestAbortedError,
    WorkerAnswer,
    WorkerGoneError,
    WorkerProcess,
)

log = logging.getLogger(__name__)
# A request that has brought three workers down is the likely cause of it.
MAX_SENDS = 3
# An update takes a request from its worker so often; then it is let finish, else updates that follow
# each other faster than it is answered would keep it for ever.
MAX_ABORTS = 3
# More than one request can cause by itself.
MAX_STRIKES = 4


class Dispatcher:
    def __init__(
        self,
        router: Router,
        fleet: Fleet,
        *,
        timeout_s: float,
        telemetry: Telemetry | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._router = router
        self._fleet = fleet
        self._timeout_s = timeout_s
        self._telemetry = telemetry or Telemetry()
        self._clock = clock
        self._answered_at: dict[str, float] = {}
        self._strikes: dict[WorkerProcess, int] = {}
        self.num_in_flight = 0

    async def complete(
        self,
        request: ChatRequest,
        images: Mapping[str, bytes],
        *,
        trajectory_id: str,
        timeout_s: float | None = None,
    ) -> WorkerAnswer:
        """``timeout_s`` is the caller's own limit, where it is below the service's.

        Raises:
            ApiError: 429 where too many wait, 503 where no worker took it in time, 504 where none
                answered, 502 after MAX_SENDS workers died or answered nonsense.
        """
        started_at = self._clock()
        limit_s = self._timeout_s if timeout_s is None else min(timeout_s, self._timeout_s)
        self.num_in_flight += 1
        status = 499  # the caller went away
        try:
            answer = await self._complete(request, images, trajectory_id, started_at + limit_s)
            status = answer.status
            return answer
        except ApiError as error:
            status = error.status
            raise
        finally:
            self.num_in_flight -= 1
            self._telemetry.answers[status] += 1
            self._telemetry.request_s.add(self._clock() - started_at)

    async def _complete(
        self,
        request: ChatRequest,
        images: Mapping[str, bytes],
        trajectory_id: str,
        deadline: float,
    ) -> WorkerAnswer:
        last: WorkerGoneError | None = None
        failed: list[WorkerSlot] = []
        behind: set[WorkerSlot] = set()  # would soon be made to give it back again
        num_aborts = 0
        while len(failed) < MAX_SENDS:
            slot = await self._acquire(
                trajectory_id,
                deadline,
                avoid=behind.union(failed),
                again=num_aborts > 0 or bool(failed),
            )
            try:
                abortable = self._fleet.abort and num_aborts < MAX_ABORTS
                return await self._send(slot, request, images, deadline, abortable=abortable)
            except RequestAbortedError:
                num_aborts += 1
                behind = self._fleet.behind()
                self._telemetry.num_aborts += 1
            except WorkerGoneError as error:
                last = error
                failed.append(slot)
                log.warning("a request is sent again: %s", error)
                self._telemetry.num_resends += 1
            finally:
                self._router.release(slot)
        raise ApiError(502, "worker_error", f"no answer after {MAX_SENDS} tries: {last}")

    async def _acquire(
        self, trajectory_id: str, deadline: float, *, avoid: set[WorkerSlot], again: bool
    ) -> WorkerSlot:
        asked_at = self._clock()
        try:
            slot = await self._router.acquire(
                trajectory_id,
                timeout_s=max(0.0, deadline - asked_at),
                avoid=avoid,
                again=again,
            )
        except QueueTimeoutError as error:
            raise ApiError(503, "overloaded", str(error)) from None
        except QueueFullError as error:
            retry_after_s = round(error.retry_after_s, 1)
            raise ApiError(429, "overloaded", str(error), retry_after_s=retry_after_s) from None
        self._telemetry.wait_s.add(self._clock() - asked_at)
        return slot

    async def _send(
        self,
        slot: WorkerSlot,
        request: ChatRequest,
        images: Mapping[str, bytes],
        deadline: float,
        *,
        abortable: bool,
    ) -> WorkerAnswer:
        process = self._fleet.process(slot)
        sent_at, version = self._clock(), slot.policy_version
        try:
            async with asyncio.timeout(max(0.0, deadline - sent_at)):
                answer = await process.generate(request, images, abortable=abortable)
        except WorkerGoneError as error:
            self._fleet.fail(process, str(error))
            raise
        except TimeoutError:
            self._judge(process, sent_at)
            raise ApiError(
                504,
                "timeout",
                f"no answer within {self._clock() - sent_at:.1f} s (rollout.request_timeout_s = "
                f"{self._timeout_s}, or the caller's own limit)",
            ) from None
        self._answered_at[slot.worker_id] = self._clock()
        if answer.status == 409:
            raise WorkerGoneError(f"{slot.worker_id} takes no requests")
        if fault := answer.fault(version):
            self._strike(process, fault)
            raise WorkerGoneError(f"{slot.worker_id} answered {fault}")
        self._strikes.pop(process, None)
        slot.num_completed += answer.status == 200
        return answer

    def _strike(self, process: WorkerProcess, fault: str) -> None:
        """One bad answer may be the request's fault; several in a row, to any, are the worker's."""
        self._strikes[process] = self._strikes.get(process, 0) + 1
        if self._strikes[process] >= MAX_STRIKES:
            del self._strikes[process]
            self._fleet.fail(process, f"{MAX_STRIKES} bad answers in a row, the last one {fault}")

    def _judge(self, process: WorkerProcess, sent_at: float) -> None:
        """Half the time limit without an answer to anybody is a worker that hangs."""
        silent_since = max(sent_at, self._answered_at.get(process.slot.worker_id, 0.0))
        silent_s = self._clock() - silent_since
        if silent_s > self._timeout_s / 2:
            self._fleet.fail(process, f"it answered nothing for {silent_s:.1f} s")
