from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_gui.launch.process import (
    PERMANENT_EXIT_CODE,
    TRANSITIONS,
    ManagedProcess,
    ProcessSpec,
    ProcessState,
    backoff_s,
    describe_exit,
    last_lines,
)


@dataclass
class FakeHandle:
    """A process whose end the test decides."""

    code: int | None = None
    terminated: int = 0
    killed: int = 0
    pid: int = 4711

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.terminated += 1

    def kill(self) -> None:
        self.killed += 1


@dataclass
class Bench:
    """A managed process on a clock that the test moves."""

    max_restarts: int = 2
    finished: bool = False
    now: float = 0.0
    handles: list[FakeHandle] = field(default_factory=list)

    def __post_init__(self) -> None:
        spec = ProcessSpec(
            name="trainer",
            spawn=self._spawn,
            log=Path("trainer.log"),
            max_restarts=self.max_restarts,
            stop_timeout_s=20.0,
            finished=lambda: self.finished,
        )
        self.process = ManagedProcess(spec, now=lambda: self.now)

    def _spawn(self) -> FakeHandle:
        self.handles.append(FakeHandle())
        return self.handles[-1]

    def exits(self, code: int) -> ProcessState:
        self.handles[-1].code = code
        self.process.tick()
        return self.process.state

    def passes(self, seconds: float) -> ProcessState:
        self.now += seconds
        self.process.tick()
        return self.process.state


def test_a_process_that_dies_is_started_again_after_a_growing_pause() -> None:
    bench = Bench(max_restarts=2)
    bench.process.start()
    assert bench.exits(1) is ProcessState.BACKOFF
    assert bench.passes(0.4) is ProcessState.BACKOFF
    assert bench.passes(0.2) is ProcessState.RUNNING
    assert bench.exits(-9) is ProcessState.BACKOFF
    assert bench.passes(0.9) is ProcessState.BACKOFF
    assert bench.passes(0.2) is ProcessState.RUNNING
    assert bench.process.restarts == 2
    assert len(bench.handles) == 3


def test_after_the_last_restart_it_has_failed() -> None:
    bench = Bench(max_restarts=1)
    bench.process.start()
    bench.exits(1)
    bench.passes(1.0)
    assert bench.exits(3) is ProcessState.FAILED
    assert bench.process.exit_code == 3
    assert bench.passes(100.0) is ProcessState.FAILED
    assert len(bench.handles) == 2


def test_a_permanent_error_is_not_tried_again() -> None:
    bench = Bench(max_restarts=5)
    bench.process.start()
    assert bench.exits(PERMANENT_EXIT_CODE) is ProcessState.FAILED


def test_exit_code_zero_means_finished_only_with_the_work_done() -> None:
    bench = Bench()
    bench.process.start()
    assert bench.exits(0) is ProcessState.BACKOFF
    bench.passes(1.0)
    bench.finished = True
    assert bench.exits(0) is ProcessState.FINISHED


def test_what_a_dead_process_left_behind_is_killed_before_it_starts_again() -> None:
    bench = Bench()
    bench.process.start()
    bench.exits(1)
    assert bench.handles[0].killed == 1


def test_stop_asks_first_and_kills_after_the_time_out() -> None:
    bench = Bench()
    bench.process.start()
    bench.process.stop()
    assert bench.process.state is ProcessState.STOPPING
    assert bench.passes(19.9) is ProcessState.STOPPING
    assert (bench.handles[0].terminated, bench.handles[0].killed) == (1, 0)
    assert bench.passes(0.2) is ProcessState.STOPPING
    assert bench.handles[0].killed == 1
    assert bench.exits(-9) is ProcessState.STOPPED


def test_a_process_that_ends_on_request_is_stopped_whatever_its_exit_code() -> None:
    for code in (0, 1, -15):
        bench = Bench()
        bench.process.start()
        bench.process.stop()
        assert bench.exits(code) is ProcessState.STOPPED


def test_stop_in_the_pause_before_a_restart_prevents_it() -> None:
    bench = Bench()
    bench.process.start()
    bench.exits(1)
    bench.process.stop()
    assert bench.passes(100.0) is ProcessState.STOPPED
    assert len(bench.handles) == 1


def test_stop_may_be_called_again_and_after_the_end() -> None:
    bench = Bench()
    bench.process.start()
    bench.process.stop()
    bench.process.stop()
    assert bench.handles[0].terminated == 1
    bench.exits(0)
    bench.process.stop()
    assert bench.process.state is ProcessState.STOPPED


def test_kill_does_not_wait() -> None:
    bench = Bench()
    bench.process.start()
    bench.process.kill()
    assert bench.handles[0].killed == 1
    assert bench.exits(-9) is ProcessState.STOPPED


@pytest.mark.parametrize(("old", "new"), itertools.product(ProcessState, ProcessState))
def test_only_the_moves_of_the_table_are_possible(old: ProcessState, new: ProcessState) -> None:
    process = Bench().process
    process._state = old
    if new in TRANSITIONS[old]:
        process._enter(new)
        assert process.state is new
    else:
        with pytest.raises(RuntimeError, match=f"{old} -> {new}"):
            process._enter(new)


@given(st.integers(0, 10_000))
def test_the_pause_grows_to_a_bound(restarts: int) -> None:
    assert 0.5 <= backoff_s(restarts) <= backoff_s(restarts + 1) <= 30.0


@given(st.lists(st.sampled_from(["die", "end", "stop", "wait"]), max_size=30))
def test_whatever_happens_restarts_stay_within_their_bound(events: list[str]) -> None:
    bench = Bench(max_restarts=2)
    bench.process.start()
    for event in events:
        if event == "stop":
            bench.process.stop()
        elif event == "wait":
            bench.passes(60.0)
        else:
            bench.exits(0 if event == "end" else 1)
    assert len(bench.handles) == bench.process.restarts + 1 <= 3


def test_exits_are_described_in_words() -> None:
    assert describe_exit(3) == "exit code 3"
    assert describe_exit(-9) == "signal SIGKILL"
    assert describe_exit(None) == "no exit code"


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert last_lines(log) == ""
    log.write_text("\n".join(f"line {i}" for i in range(10_000)))
    assert last_lines(log, 2) == "line 9998\nline 9999"


def test_a_process_may_be_given_more_time_to_end_and_then_less() -> None:
    bench = Bench()
    bench.process.start()
    bench.process.stop(timeout_s=float("inf"))
    bench.now = 1000.0
    bench.process.tick()
    assert bench.handles[0].killed == 0
    bench.process.stop()
    assert bench.handles[0].terminated == 1, "asked once"
    bench.now = 1019.0
    bench.process.tick()
    assert bench.handles[0].killed == 0
    bench.now = 1020.0
    bench.process.tick()
    assert bench.handles[0].killed == 1
