"""The fleet's controllers over scripted worker processes."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from dart_gui.errors import SetupError
from dart_gui.rollout.fingerprint import Fingerprint
from dart_gui.rollout.fleet import Fleet
from dart_gui.rollout.states import WorkerSlot, WorkerState
from dart_gui.rollout.worker_process import LoadBusyError, LoadRefusedError, WorkerGoneError
from dart_gui.types import WeightsRef


class ScriptedProcess:
    """Starts at once; a load waits for ``gate`` and then does what ``script`` says."""

    fingerprint: Fingerprint | None = None

    def __init__(self, slot: WorkerSlot, log: list[str]) -> None:
        self.slot = slot
        self.log = log
        self.gate = asyncio.Event()
        self.gate.set()
        self.script: list[Exception | int] = []
        self.start_error: SetupError | None = None
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def _note(self, what: str) -> None:
        self.log.append(f"{self.slot.worker_id} {what}")

    async def start(self, weights: WeightsRef) -> int:
        if self.start_error is not None:
            raise self.start_error
        self._note(f"starts at {weights.policy_version}")
        return weights.policy_version

    async def load(self, weights: WeightsRef) -> int:
        assert self.slot.state is WorkerState.LOADING
        assert self.slot.num_in_flight == 0
        self._note(f"loads {weights.policy_version}")
        await self.gate.wait()
        outcome = self.script.pop(0) if self.script else weights.policy_version
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def abort(self) -> None:
        assert self.slot.state is WorkerState.DRAINING
        self._note("aborts")

    async def wait(self) -> int:
        return await asyncio.shield(self.ended)

    def kill(self) -> None:
        self._note("is killed")
        self.end()

    def end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(-9)

    async def close(self) -> None:
        self.end()


class Bench:
    """A fleet of scripted processes; the newest process of each worker by index."""

    def __init__(
        self,
        folder: Path,
        count: int,
        prepare: Callable | None = None,
        *,
        max_unavailable: int = 1,
        abort: bool = False,
    ) -> None:
        self.folder = folder
        self.log: list[str] = []
        self.slots = [WorkerSlot(worker_id=f"w{index}") for index in range(count)]
        self.prepare = prepare
        self.fleet = Fleet(
            self.slots,
            self._new_process,  # type: ignore[arg-type]
            base=self.weights(0),
            desired=self.weights(0),
            max_unavailable=max_unavailable,
            drain_timeout_s=3600.0,
            abort=abort,
            sleep=lambda _: asyncio.sleep(0),
        )

    def weights(self, version: int) -> WeightsRef:
        path = self.folder / f"v{version}"
        path.mkdir(exist_ok=True)
        return WeightsRef(policy_version=version, path=str(path))

    def _new_process(self, slot: WorkerSlot) -> ScriptedProcess:
        process = ScriptedProcess(slot, self.log)
        if self.prepare is not None:
            self.prepare(process)
        return process

    def process(self, index: int) -> ScriptedProcess:
        return self.fleet.process(self.slots[index])  # type: ignore[return-value]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0)

    def versions(self) -> list[int]:
        return [slot.policy_version for slot in self.slots]

    def states(self) -> list[str]:
        return [slot.state.value for slot in self.slots]


async def test_workers_are_updated_one_after_the_other(tmp_path):
    bench = Bench(tmp_path, 2)
    await bench.fleet.start()
    bench.process(0).gate.clear()
    assert bench.fleet.publish(bench.weights(1))
    await bench.until(lambda: "w0 loads 1" in bench.log)
    assert bench.states() == ["loading", "ready"]
    bench.process(0).gate.set()
    await bench.until(lambda: bench.versions() == [1, 1])
    assert bench.log == ["w0 starts at 0", "w1 starts at 0", "w0 loads 1", "w1 loads 1"]
    await bench.fleet.close()


async def test_max_unavailable_workers_are_updated_at_once(tmp_path):
    bench = Bench(tmp_path, 3, max_unavailable=2)
    await bench.fleet.start()
    for index in range(3):
        bench.process(index).gate.clear()
    bench.fleet.publish(bench.weights(1))
    await bench.until(lambda: bench.states().count("loading") == 2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert bench.states() == ["loading", "loading", "ready"]
    for index in range(3):
        bench.process(index).gate.set()
    await bench.until(lambda: bench.versions() == [1, 1, 1])
    await bench.fleet.close()


async def test_newer_weights_wait_until_every_worker_has_those_of_the_wave(tmp_path):
    bench = Bench(tmp_path, 3)
    await bench.fleet.start()
    bench.process(1).gate.clear()
    bench.fleet.publish(bench.weights(1))
    await bench.until(lambda: "w1 loads 1" in bench.log)
    bench.fleet.publish(bench.weights(2))
    bench.fleet.publish(bench.weights(3))
    bench.process(1).gate.set()
    await bench.until(lambda: bench.versions() == [3, 3, 3])
    loads = [line for line in bench.log if "loads" in line]
    assert loads[:3] == ["w0 loads 1", "w1 loads 1", "w2 loads 1"]
    assert sorted(loads[3:]) == ["w0 loads 3", "w1 loads 3", "w2 loads 3"]  # 2 is left out
    await bench.fleet.close()


async def test_a_refusal_ends_the_wave(tmp_path):
    bench = Bench(tmp_path, 2)
    await bench.fleet.start()
    bench.process(1).script = [LoadRefusedError("out of memory")]
    bench.process(1).gate.clear()
    bench.fleet.publish(bench.weights(1))
    await bench.until(lambda: "w1 loads 1" in bench.log)
    bench.fleet.publish(bench.weights(2))
    bench.process(1).gate.set()
    await bench.until(lambda: bench.versions() == [2, 2])
    await bench.fleet.close()


async def test_a_worker_that_comes_up_late_takes_the_newest_before_it_serves(tmp_path):
    gate, starts = asyncio.Event(), []

    def slow_restart(process):
        original = process.start

        async def start(weights):
            starts.append(weights.policy_version)
            if len(starts) == 3:
                await gate.wait()
            return await original(weights)

        process.start = start

    bench = Bench(tmp_path, 2, slow_restart)
    await bench.fleet.start()
    bench.process(0).end()
    await bench.until(lambda: len(starts) == 3)
    for version in (1, 2):  # two waves go by while it starts
        bench.fleet.publish(bench.weights(version))
        await bench.until(lambda version=version: bench.slots[1].policy_version == version)
    seen = []
    bench.slots[0].listeners.append(lambda: seen.append((bench.slots[0].state, bench.versions())))
    gate.set()
    await bench.until(lambda: bench.slots[0].state is WorkerState.READY)
    assert seen[-1] == (WorkerState.READY, [2, 2])
    assert all(state is not WorkerState.READY for state, _ in seen[:-1])
    await bench.fleet.close()


async def test_a_controller_that_breaks_is_not_silent(tmp_path):
    bench = Bench(tmp_path, 1)
    await bench.fleet.start()
    bench.process(0).script = [KeyError("a bug")]
    bench.fleet.publish(bench.weights(1))
    with pytest.raises(KeyError):
        await bench.fleet.wait()
    await bench.fleet.close()


async def test_a_worker_drains_before_it_loads(tmp_path):
    bench = Bench(tmp_path, 1)
    await bench.fleet.start()
    bench.slots[0].num_in_flight = 1
    bench.fleet.publish(bench.weights(1))
    await bench.until(lambda: bench.states() == ["draining"])
    bench.fleet.publish(bench.weights(2))
    bench.slots[0].num_in_flight = 0
    await bench.until(lambda: bench.versions() == [2])
    assert bench.log == ["w0 starts at 0", "w0 loads 2"]  # the newest when it had drained
    await bench.fleet.close()


async def test_a_worker_that_aborts_loads_when_its_requests_are_given_back(tmp_path):
    bench = Bench(tmp_path, 2, abort=True)
    await bench.fleet.start()
    bench.slots[0].num_in_flight = 3
    bench.process(1).gate.clear()
    bench.fleet.publish(bench.weights(1))
    await bench.until(lambda: "w0 aborts" in bench.log)
    assert bench.states() == ["draining", "ready"]
    assert bench.fleet.behind() == set(bench.slots)
    bench.slots[0].num_in_flight = 0
    bench.slots[0].notify()
    await bench.until(lambda: "w1 loads 1" in bench.log)
    assert bench.states() == ["ready", "loading"]
    assert bench.fleet.behind() == {bench.slots[1]}
    bench.process(1).gate.set()
    await bench.until(lambda: bench.versions() == [1, 1])
    assert bench.log[2:] == ["w0 aborts", "w0 loads 1", "w1 aborts", "w1 loads 1"]
    assert bench.fleet.behind() == set()
    await bench.fleet.close()


async def test_a_worker_taken_out_by_hand_finishes_its_requests(tmp_path):
    bench = Bench(tmp_path, 1, abort=True)
    await bench.fleet.start()
    bench.slots[0].num_in_flight = 1
    bench.fleet.hold(bench.slots[0], True)
    await bench.until(lambda: bench.states() == ["draining"])
    bench.slots[0].num_in_flight = 0
    bench.slots[0].notify()
    await bench.until(lambda: bench.states() == ["dead"])
    assert "w0 aborts" not in bench.log
    await bench.fleet.close()


async def test_older_and_equal_versions_are_ignored(tmp_path):
    bench = Bench(tmp_path, 1)
    await bench.fleet.start()
    assert bench.fleet.publish(bench.weights(5))
    assert not bench.fleet.publish(bench.weights(5))
    assert not bench.fleet.publish(bench.weights(4))
    assert bench.fleet.desired == bench.weights(5)
    await bench.fleet.close()


async def test_refused_weights_are_reported_and_tried_again_only_when_newer(tmp_path):
    bench = Bench(tmp_path, 2)
    await bench.fleet.start()
    bench.process(0).script = [LoadRefusedError("a tensor is missing")]
    bench.fleet.publish(bench.weights(1))
    await bench.until(lambda: bench.fleet.update_error is not None)
    assert bench.fleet.update_error is not None
    assert "version 1" in bench.fleet.update_error
    assert "a tensor is missing" in bench.fleet.update_error
    for _ in range(50):
        await asyncio.sleep(0)
    assert (bench.versions(), bench.states()) == ([0, 0], ["ready", "ready"])
    assert bench.log.count("w0 loads 1") == 1
    bench.fleet.publish(bench.weights(2))
    await bench.until(lambda: bench.versions() == [2, 2])
    assert bench.fleet.update_error is None
    await bench.fleet.close()


async def test_a_busy_worker_is_asked_again(tmp_path):
    bench = Bench(tmp_path, 1)
    await bench.fleet.start()
    bench.process(0).script = [LoadBusyError("1 request is in flight")]
    bench.fleet.publish(bench.weights(1))
    await bench.until(lambda: bench.versions() == [1])
    assert bench.log[1:] == ["w0 loads 1", "w0 loads 1"]
    await bench.fleet.close()


@pytest.mark.parametrize("outcome", [WorkerGoneError("reset"), 7], ids=["dies", "wrong version"])
async def test_a_worker_that_breaks_its_promise_comes_back_with_the_desired_version(
    tmp_path, outcome
):
    bench = Bench(tmp_path, 2)
    await bench.fleet.start()
    bench.process(0).script = [outcome]
    bench.fleet.publish(bench.weights(1))
    await bench.until(lambda: bench.versions() == [1, 1] and bench.states() == ["ready"] * 2)
    assert "w0 is killed" in bench.log
    assert "w0 starts at 1" in bench.log
    assert [slot.restarts for slot in bench.slots] == [1, 0]
    await bench.fleet.close()


async def test_a_worker_that_dies_while_it_drains_is_started_again(tmp_path):
    bench = Bench(tmp_path, 1)
    await bench.fleet.start()
    bench.slots[0].num_in_flight = 1
    bench.fleet.publish(bench.weights(1))
    await bench.until(lambda: bench.states() == ["draining"])
    bench.fleet.fail(bench.process(0), "connection reset")  # type: ignore[arg-type]
    bench.slots[0].num_in_flight = 0
    await bench.until(lambda: bench.states() == ["ready"])
    assert bench.log == ["w0 starts at 0", "w0 is killed", "w0 starts at 1"]
    await bench.fleet.close()


async def test_weights_that_no_worker_can_start_with_give_way_to_older_ones(tmp_path):
    def refuse_version_3(process):
        original = process.start

        async def start(weights):
            if weights.policy_version == 3:
                raise SetupError("v3 is corrupt")
            return await original(weights)

        process.start = start

    bench = Bench(tmp_path, 1, refuse_version_3)
    bench.fleet.desired = bench.weights(3)
    await bench.fleet.start()
    assert bench.versions() == [0]
    assert "v3 is corrupt" in (bench.fleet.update_error or "")
    bench.fleet.publish(bench.weights(4))
    await bench.until(lambda: bench.versions() == [4])
    await bench.fleet.close()


async def test_a_folder_that_is_gone_is_not_started_with(tmp_path):
    bench = Bench(tmp_path, 1)
    bench.fleet.desired = WeightsRef(policy_version=9, path=str(tmp_path / "pruned"))
    await bench.fleet.start()
    assert bench.log[0] == "w0 starts at 0"
    await bench.fleet.close()


async def test_a_model_that_is_not_one_ends_the_start(tmp_path):
    def refuse(process):
        process.start_error = SetupError("models/x is not a model folder")

    bench = Bench(tmp_path, 2, refuse)
    with pytest.raises(SetupError, match="models/x is not a model folder"):
        await bench.fleet.start()
    await bench.fleet.close()


async def test_a_worker_whose_weights_differ_from_those_of_the_others_is_started_again(tmp_path):
    """The second load went wrong without a word; a fresh start settles it."""
    checksums = iter(["zero", "zero", "one", "wrong", "one"])

    def prepare(process: ScriptedProcess) -> None:
        take = process.load
        begin = process.start

        async def load(weights: WeightsRef) -> int:
            process.fingerprint = Fingerprint(next(checksums), (), ())
            return await take(weights)

        async def start(weights: WeightsRef) -> int:
            process.fingerprint = Fingerprint(next(checksums), (), ())
            return await begin(weights)

        process.load, process.start = load, start  # type: ignore[method-assign]

    bench = Bench(tmp_path, 2, prepare)
    await bench.fleet.start()
    bench.fleet.publish(bench.weights(1))
    await bench.until(lambda: bench.log.count("w1 starts at 1") == 1)
    await bench.until(lambda: bench.states() == ["ready", "ready"])
    assert bench.versions() == [1, 1]
    assert "w0 is killed" not in bench.log
    await bench.fleet.close()
