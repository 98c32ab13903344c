"""A request on its way through workers that die or give it back, on scripted ones."""

import asyncio
from typing import Any

import pytest

from dart_gui.rollout.chat import ChatRequest
from dart_gui.rollout.dispatch import MAX_ABORTS, MAX_SENDS, Dispatcher
from dart_gui.rollout.httpd import ApiError
from dart_gui.rollout.router import Router
from dart_gui.rollout.states import WorkerSlot, WorkerState
from dart_gui.rollout.telemetry import Telemetry
from dart_gui.rollout.worker_process import RequestAbortedError, WorkerAnswer, WorkerGoneError
from dart_gui.types import SamplingParams

REQUEST = ChatRequest(
    messages=[{"role": "user", "content": "hello"}],
    image_hashes=[],
    sampling=SamplingParams(temperature=1.0, max_tokens=8, seed=1),
    model="m",
    logprobs=True,
    return_token_ids=True,
)


class Stage:
    """Workers that do what ``script`` says, call by call, wherever the call goes; then they answer.
    It is the fleet and each of its processes."""

    def __init__(self, count: int, script: list[Any], *, capacity: int = 4, max_queue: int = 1):
        self.slots = [
            WorkerSlot(worker_id=f"w{index}", state=WorkerState.READY) for index in range(count)
        ]
        self.script = script
        self.abort = True
        self.ahead: set[WorkerSlot] = set()  # have the new weights
        self.calls: list[tuple[str, bool]] = []  # worker, abortable
        self.now = 0.0
        self.telemetry = Telemetry()
        self.router = Router(self.slots, capacity=capacity, max_queue=max_queue)
        self.dispatcher = Dispatcher(
            self.router,
            self,  # type: ignore[arg-type]
            timeout_s=100.0,
            telemetry=self.telemetry,
            clock=lambda: self.now,
        )

    def behind(self) -> set[WorkerSlot]:
        return set(self.slots) - self.ahead

    def fail(self, process: Any, reason: str) -> None:
        pass

    def process(self, slot: WorkerSlot) -> Any:
        stage = self

        class Process:
            async def generate(self, request, images, *, abortable):
                stage.calls.append((slot.worker_id, abortable))
                step = stage.script.pop(0) if stage.script else None
                if callable(step):
                    step = await step(slot)
                if isinstance(step, Exception):
                    raise step
                return WorkerAnswer(200, b'{"id":1}', slot.policy_version)

        process = Process()
        process.slot = slot  # type: ignore[attr-defined]
        return process

    async def ask(self) -> WorkerAnswer:
        return await self.dispatcher.complete(REQUEST, {}, trajectory_id="t")


ABORTED = RequestAbortedError("it takes new weights")


async def test_an_aborted_request_is_sent_again():
    stage = Stage(2, [ABORTED])
    assert (await stage.ask()).status == 200
    assert [abortable for _, abortable in stage.calls] == [True, True]
    assert (stage.telemetry.num_aborts, stage.telemetry.num_resends) == (1, 0)
    assert [slot.num_in_flight for slot in stage.slots] == [0, 0]


async def test_it_goes_to_a_worker_that_has_the_weights():
    stage = Stage(4, [])
    stage.ahead = {stage.slots[3]}
    stage.slots[3].num_in_flight = 2  # the fullest
    stage.script = [ABORTED]
    await stage.ask()
    assert [worker for worker, _ in stage.calls] == ["w0", "w3"]


async def test_a_request_that_was_aborted_often_is_let_finish():
    stage = Stage(2, [ABORTED] * MAX_ABORTS)
    assert (await stage.ask()).status == 200
    assert [abortable for _, abortable in stage.calls] == [True] * MAX_ABORTS + [False]


async def test_an_abort_is_none_of_the_failures_that_are_bounded():
    stage = Stage(1, [WorkerGoneError("gone")] * (MAX_SENDS - 1) + [ABORTED] * MAX_ABORTS)
    assert (await stage.ask()).status == 200
    stage = Stage(1, [WorkerGoneError("gone"), ABORTED] * MAX_SENDS)
    with pytest.raises(ApiError, match=f"no answer after {MAX_SENDS} tries: gone"):
        await stage.ask()
    assert stage.telemetry.num_aborts == MAX_SENDS - 1


async def test_the_only_worker_answers_it_after_the_load():
    async def drain(slot):
        slot.move(WorkerState.DRAINING)
        return ABORTED

    stage = Stage(1, [drain])
    (slot,) = stage.slots
    asked = asyncio.create_task(stage.ask())
    while stage.router.queue_size == 0:
        await asyncio.sleep(0)
    assert slot.num_in_flight == 0
    slot.move(WorkerState.LOADING)
    slot.policy_version = 1
    slot.move(WorkerState.READY)
    assert (await asked).policy_version == 1


async def test_the_deadline_is_the_callers_from_the_beginning():
    stage = Stage(1, [])

    async def late(slot):
        stage.now = 101.0
        slot.move(WorkerState.DRAINING)
        return ABORTED

    stage.script = [late]
    with pytest.raises(ApiError, match="no worker was free") as caught:
        await stage.ask()
    assert caught.value.status == 503


async def test_a_full_queue_does_not_refuse_what_was_accepted():
    gate, order = asyncio.Event(), []

    async def drain(slot):
        await gate.wait()
        slot.move(WorkerState.DRAINING)
        return ABORTED

    stage = Stage(1, [drain], capacity=1, max_queue=1)
    (slot,) = stage.slots

    async def ask(name):
        await stage.ask()
        order.append(name)

    asked = [asyncio.create_task(ask(name)) for name in ("first", "second")]
    while stage.router.queue_size < 1:
        await asyncio.sleep(0)
    with pytest.raises(ApiError) as caught:
        await stage.ask()
    assert caught.value.status == 429
    gate.set()
    while stage.router.queue_size < 2:
        await asyncio.sleep(0)
    slot.move(WorkerState.LOADING)
    slot.move(WorkerState.READY)
    await asyncio.gather(*asked)
    assert order == ["first", "second"]


async def test_without_the_mode_no_request_is_abortable():
    stage = Stage(1, [])
    stage.abort = False
    await stage.ask()
    assert stage.calls == [("w0", False)]
