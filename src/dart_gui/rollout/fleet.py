"""The workers together: each kept alive, and all brought to the desired weights one by one.

One controller a worker, level-triggered: at every tick it compares what is with what is wanted, and
a change only makes the tick sooner. A process that ended is started again, after a growing pause,
at the newest weights. A worker whose version is behind goes READY -> DRAINING -> LOADING -> READY
while fewer than ``max_unavailable`` others are under way. What it is answering is awaited, or, where
``abort`` says so, taken from it and sent again whole: to a worker that has the weights, if there is one.

Updates come in waves: newer weights wait until every worker has those of the wave. So at most two
versions are in service at a time, one update apart, however fast the trainer publishes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

from dart_gui.errors import SetupError
from dart_gui.rollout.fingerprint import Agreement
from dart_gui.rollout.states import WorkerSlot, WorkerState
from dart_gui.rollout.worker_process import (
    LoadBusyError,
    LoadRefusedError,
    WorkerGoneError,
    WorkerProcess,
)
from dart_gui.types import WeightsRef

log = logging.getLogger(__name__)
_TICK_S = 1.0
_BUSY_POLL_S = 0.02
_MIN_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 30.0
_HEALTHY_S = 60.0
_UPDATING = (WorkerState.DRAINING, WorkerState.LOADING)
_SERVING = (WorkerState.READY, *_UPDATING)


class Fleet:
    """``base`` are the weights of the configuration; ``desired`` those to come up with."""

    def __init__(
        self,
        slots: Sequence[WorkerSlot],
        new_process: Callable[[WorkerSlot], WorkerProcess],
        *,
        base: WeightsRef,
        desired: WeightsRef,
        max_unavailable: int,
        drain_timeout_s: float,
        abort: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.slots = slots
        self.desired = desired
        self._wave = desired  # what the workers are brought to at present
        self.update_error: str | None = None
        self._new_process = new_process
        self._fallbacks = [base]  # the newest weights that some worker has taken come last
        self._failed_version = -1
        self._agreement = Agreement()
        self._max_unavailable = max_unavailable
        self._drain_timeout_s = drain_timeout_s
        self.abort = abort
        self._clock = clock
        self._sleep = sleep
        self._processes: dict[str, WorkerProcess] = {}
        self._changed = asyncio.Event()
        self._controllers: list[asyncio.Task[None]] = []
        self._start_error: str | None = None
        for slot in slots:
            slot.listeners.append(self._changed.set)

    def process(self, slot: WorkerSlot) -> WorkerProcess:
        return self._processes[slot.worker_id]

    def publish(self, weights: WeightsRef) -> bool:
        """Set the desired weights and return at once; False for a version that is not newer."""
        if weights.policy_version <= self.desired.policy_version:
            return False
        self.desired = weights
        self._changed.set()
        return True

    def fail(self, process: WorkerProcess, reason: str) -> None:
        """Give up a process that broke a promise; its controller starts another one."""
        slot = process.slot
        if self.process(slot) is not process or slot.state is WorkerState.DEAD:
            return
        log.error("%s is given up in state %s: %s", slot.worker_id, slot.state, reason)
        slot.move(WorkerState.DEAD)
        process.kill()

    def hold(self, slot: WorkerSlot, held: bool) -> None:
        """Take a worker out of service once it is idle, or let it come back."""
        slot.held = held
        slot.notify()

    def behind(self) -> set[WorkerSlot]:
        """The workers that the update under way has yet to reach."""
        return {slot for slot in self.slots if self._is_behind(slot)}

    def refusal(self, version: int) -> str | None:
        """Why no worker takes this version, None while it is not refused."""
        return self.update_error if version == self._failed_version else None

    async def wait(self) -> None:
        """Until a controller ends, which it never should: raises what ended it."""
        done, _ = await asyncio.wait(self._controllers, return_when=asyncio.FIRST_COMPLETED)
        for controller in done:
            controller.result()

    async def start(self) -> None:
        """Returns when every worker is READY.

        Raises:
            SetupError: one of them could not start.
        """
        self._controllers = [asyncio.create_task(self._control(slot)) for slot in self.slots]
        while any(slot.state is not WorkerState.READY for slot in self.slots):
            if self._start_error is not None:
                raise SetupError(self._start_error)
            for controller in self._controllers:
                if controller.done():
                    controller.result()
            await self._change()

    async def close(self) -> None:
        for controller in self._controllers:
            controller.cancel()
        await asyncio.gather(*self._controllers, return_exceptions=True)
        await asyncio.gather(*(process.close() for process in self._processes.values()))

    async def _change(self) -> None:
        """Until something changed, or for one tick. The caller must not await between reading the
        state that it waits for and this call, else it may sleep through the change."""
        self._changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_TICK_S):
                await self._changed.wait()

    # --- one worker ------------------------------------------------------------------------

    async def _control(self, slot: WorkerSlot) -> None:
        backoff_s = _MIN_BACKOFF_S
        while True:
            while slot.held:
                await self._change()
            started_at = self._clock()
            await self._live(slot)
            healthy = self._clock() - started_at > _HEALTHY_S
            backoff_s = _MIN_BACKOFF_S if healthy else min(2 * backoff_s, _MAX_BACKOFF_S)
            await self._sleep(backoff_s)
            slot.restarts += 1

    async def _live(self, slot: WorkerSlot) -> None:
        """From the start of a process to its end; the slot is DEAD afterwards."""
        process = self._new_process(slot)
        self._processes[slot.worker_id] = process
        slot.move(WorkerState.STARTING)
        weights = self._start_weights()
        try:
            slot.policy_version = await process.start(weights)
            self._verify(slot, weights)
            self._compare(slot, process, fresh=True)
        except SetupError as error:
            self._on_start_error(slot, weights, error)
        else:
            if self._is_behind(slot):  # the wave moved on while it started
                await self._take(slot, process)
            else:
                slot.move(WorkerState.READY)
            if slot.state is WorkerState.READY:
                await self._serve_until_end(slot, process)
        if slot.state is not WorkerState.DEAD:
            slot.move(WorkerState.DEAD)
        await process.close()

    async def _serve_until_end(self, slot: WorkerSlot, process: WorkerProcess) -> None:
        ended = asyncio.create_task(process.wait())
        ended.add_done_callback(lambda _: self._changed.set())
        while not ended.done():
            if slot.held and await self._drain(slot, process):
                slot.move(WorkerState.DEAD)
                process.kill()
                return
            if self._may_update(slot):
                await self._update(slot, process)
            else:
                await self._change()
        log.warning("%s ended with status %s", slot.worker_id, ended.result())

    def _start_weights(self) -> WeightsRef:
        """Those of the wave, else the newest whose folder is there: an old one is honest about its
        version, and the trainer will publish again, while no service at all would stop the run."""
        aim = self._aim()
        wanted = [aim] if aim.policy_version != self._failed_version else []
        candidates = [*wanted, *reversed(self._fallbacks)]
        return next((ref for ref in candidates if Path(ref.path).is_dir()), candidates[-1])

    def _on_start_error(self, slot: WorkerSlot, weights: WeightsRef, error: SetupError) -> None:
        log.error("%s did not start: %s", slot.worker_id, error)
        if weights in self._fallbacks:
            self._start_error = str(error)
        else:
            self._reject(weights, str(error))

    def _verify(self, slot: WorkerSlot, weights: WeightsRef) -> None:
        if slot.policy_version != weights.policy_version:
            raise SetupError(
                f"{slot.worker_id} reports version {slot.policy_version} after taking "
                f"{weights.policy_version} from {weights.path}"
            )
        if weights.policy_version > self._fallbacks[-1].policy_version:
            self._fallbacks[1:] = [weights]

    def _compare(self, slot: WorkerSlot, process: WorkerProcess, *, fresh: bool) -> None:
        suspect = self._agreement.suspect(
            slot.worker_id, slot.policy_version, process.fingerprint, fresh=fresh
        )
        if suspect == slot.worker_id:
            raise WorkerGoneError("its weights are not those of the other workers")
        if suspect is not None:
            self.fail(self._processes[suspect], "its weights are not those of a fresh start")

    def _reject(self, weights: WeightsRef, reason: str) -> None:
        """These weights are not tried again: only a newer version ends the state."""
        self._failed_version = weights.policy_version
        self.update_error = f"version {weights.policy_version} from {weights.path}: {reason}"
        log.error("weights are refused: %s", self.update_error)

    # --- the rolling update ----------------------------------------------------------------

    def _aim(self) -> WeightsRef:
        """The weights of the wave. It moves on to the newest when every worker that serves has
        them, when none has begun to take them, or when they were refused."""
        wave = self._wave.policy_version
        serving = [slot for slot in self.slots if slot.state in _SERVING]
        num_there = sum(slot.policy_version >= wave for slot in serving)
        is_begun = num_there > 0 or any(slot.state is WorkerState.LOADING for slot in serving)
        if num_there == len(serving) or not is_begun or wave == self._failed_version:
            self._wave = self.desired
        return self._wave

    def _is_behind(self, slot: WorkerSlot) -> bool:
        wanted = self._aim().policy_version
        return slot.policy_version < wanted and wanted != self._failed_version

    def _may_update(self, slot: WorkerSlot) -> bool:
        num_updating = sum(other.state in _UPDATING for other in self.slots)
        ready = slot.state is WorkerState.READY
        return ready and num_updating < self._max_unavailable and self._is_behind(slot)

    async def _drain(
        self, slot: WorkerSlot, process: WorkerProcess, *, abort: bool = False
    ) -> bool:
        """True when nothing is in flight; False where the worker was given up."""
        if slot.state is WorkerState.DEAD:
            return False
        slot.move(WorkerState.DRAINING)
        if abort:
            process.abort()
        try:
            async with asyncio.timeout(self._drain_timeout_s):
                while slot.num_in_flight:
                    await self._change()
        except TimeoutError:
            self.fail(process, f"requests in flight after draining for {self._drain_timeout_s} s")
        return slot.state is WorkerState.DRAINING

    async def _update(self, slot: WorkerSlot, process: WorkerProcess) -> None:
        if await self._drain(slot, process, abort=self.abort):
            await self._take(slot, process)

    async def _take(self, slot: WorkerSlot, process: WorkerProcess) -> None:
        """Load the weights of the wave, with nothing in flight; the slot is READY or DEAD then."""
        weights = self._aim()  # read again: a newer version may have come while it drained
        slot.move(WorkerState.LOADING)
        try:
            slot.policy_version = await self._load(process, weights)
            self._verify(slot, weights)
            self._compare(slot, process, fresh=False)
        except LoadRefusedError as error:
            self._reject(weights, str(error))
        except (WorkerGoneError, SetupError) as error:
            self.fail(process, f"loading version {weights.policy_version}: {error}")
        else:
            self.update_error = None
            log.info("%s serves version %d", slot.worker_id, slot.policy_version)
        if slot.state is WorkerState.LOADING:
            slot.move(WorkerState.READY)

    async def _load(self, process: WorkerProcess, weights: WeightsRef) -> int:
        """A request that the router gave up (its time was over) may still run in the worker."""
        deadline = self._clock() + self._drain_timeout_s
        while True:
            try:
                return await process.load(weights)
            except LoadBusyError as error:
                if self._clock() > deadline:
                    raise WorkerGoneError(f"still busy after draining: {error}") from None
                await self._sleep(_BUSY_POLL_S)
