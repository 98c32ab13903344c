"""The supervisor over scripted processes, on a clock that moves when it sleeps."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dart_gui import config as config_module
from dart_gui.config import Config
from dart_gui.errors import SetupError
from dart_gui.launch import run_folder
from dart_gui.launch.children import Children
from dart_gui.launch.observe import Observer
from dart_gui.launch.progress import MetricsTail
from dart_gui.launch.run_folder import RunFolder
from dart_gui.launch.service import ServiceView, WorkerView
from dart_gui.launch.signals import StopSignals
from dart_gui.launch.supervisor import Outcome, Supervisor, Timing, Tools
from dart_gui.launch.view import View
from dart_gui.launch.watch import Watch
from dart_gui.metrics import MetricsWriter
from dart_gui.types import WeightsRef


@dataclass
class Handle:
    name: str
    world: World
    arguments: list[str]
    code: int | None = None
    ends_at: float | None = None  # by itself, with code 0
    obeys: bool = True  # ends when it is asked to
    pid: int = 1

    def poll(self) -> int | None:
        if self.code is None and self.ends_at is not None and self.world.now >= self.ends_at:
            self.code = 0
            self.world.at_end(self)
        return self.code

    def terminate(self) -> None:
        self.world.log.append(f"terminate {self.name}")
        if self.obeys and self.code is None:
            self.code = 0

    def kill(self) -> None:
        if self.code is None:
            self.world.log.append(f"kill {self.name}")
            self.code = -9


@dataclass
class World:
    """Processes as the supervisor meets them, and what it did to them."""

    folder: RunFolder
    config: Config
    now: float = 0.0
    log: list[str] = field(default_factory=list)
    handles: list[Handle] = field(default_factory=list)
    version: int | None = None  # in service
    train_s: float = 30.0
    crashes: dict[str, int] = field(default_factory=dict)  # name -> starts that end at once
    on_sleep: Callable[[], None] = lambda: None
    published: list[WeightsRef] = field(default_factory=list)
    latest: WeightsRef | None = None

    def spawn(self, arguments: Sequence[str], log: Path) -> Handle:
        name = arguments[0]
        handle = Handle(name, self, list(arguments))
        self.log.append(f"start {name}")
        self.handles.append(handle)
        if self.crashes.get(name, 0) > 0:
            self.crashes[name] -= 1
            handle.code = 1
            log.write_text(f"{name} broke\n")
        elif name == "rollout":
            self.version = 0
        elif name == "evaluator":
            handle.ends_at = self.now + 5.0
        elif name == "trainer":
            handle.ends_at = self.now + self.train_s
        return handle

    def at_end(self, handle: Handle) -> None:
        if handle.name == "trainer":
            self.folder.set_status("trainer", {"train_step": 7, "finished": True})
        if handle.name == "evaluator":
            named = dict(zip(handle.arguments[3::2], handle.arguments[4::2], strict=True))
            event = {
                "event": "eval",
                "phase": named["--phase"],
                "temperature": float(named["--temperature"]),
                "train_step": int(named["--train-step"]),
                "success_rate": 0.5,
            }
            with self.folder.metrics.open("a") as file:
                file.write(json.dumps(event) + "\n")

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()

    def service(self) -> ServiceView | None:
        if self.version is None:
            return None
        worker = WorkerView(
            worker_id="w0",
            state="ready",
            policy_version=self.version,
            num_in_flight=0,
            busy_s=0.0,
            restarts=0,
        )
        return ServiceView(workers=(worker,), desired_version=self.version, queue_size=0)

    def publish(self, weights: WeightsRef) -> None:
        self.published.append(weights)
        self.version = weights.policy_version

    def jobs(self) -> list[str]:
        """Phases and temperatures of the evaluations that were started."""
        return [
            f"{handle.arguments[4]} {handle.arguments[6]}"
            for handle in self.handles
            if handle.name == "evaluator"
        ]


@pytest.fixture
def world(tmp_path: Path) -> World:
    config = config_module.from_dict(
        {"launch": {"max_restarts": 2, "tensorboard": False}}, source="test"
    )
    folder = run_folder.create(config, tmp_path / "runs" / "r1")
    return World(folder, config)


@pytest.fixture
def signals() -> StopSignals:
    return StopSignals()


@pytest.fixture
def supervisor(world: World, signals: StopSignals) -> Iterator[Supervisor]:
    timing = Timing(now=lambda: world.now, monotonic=lambda: world.now, sleep=world.sleep)
    metrics = MetricsWriter(world.folder.metrics, "supervisor", timing.now)
    watch = Watch(world.config)
    observer = Observer(
        MetricsTail(world.folder.metrics), read_service=world.service, folds=[watch.fold]
    )
    observer.skip_history()
    tools = Tools(
        children=Children(world.folder, world.config, world.spawn),
        observer=observer,
        view=View(Console(quiet=True), now=timing.now),
        signals=signals,
        metrics=metrics,
        watch=watch,
        latest_weights=lambda: world.latest,
        publish=world.publish,
        timing=timing,
    )
    yield Supervisor(world.folder, world.config, tools)
    metrics.close()


def alive(world: World) -> list[str]:
    return [handle.name for handle in world.handles if handle.code is None]


def events(world: World, kind: str) -> list[Mapping[str, Any]]:
    return [e for e in MetricsTail(world.folder.metrics).read() if e["event"] == kind]


def test_a_whole_run(world: World, supervisor: Supervisor) -> None:
    assert supervisor.train() is Outcome.FINISHED
    assert [line for line in world.log if line.startswith("start")] == [
        "start rollout",
        "start evaluator",
        "start evaluator",
        "start evaluator",
        "start runner",
        "start trainer",
        "start evaluator",
        "start evaluator",
    ]
    assert world.jobs() == ["floor 0", "before 1", "before 0", "after 1", "after 0"]
    assert alive(world) == []
    # The runner ends with the training, the service last of all.
    assert world.log[-1] == "terminate rollout"
    assert world.log.index("terminate runner") < len(world.log) - 3


def test_a_finished_run_has_nothing_left_to_do(world: World, supervisor: Supervisor) -> None:
    supervisor.train()
    num_started = len(world.handles)
    supervisor.train()
    assert [handle.name for handle in world.handles[num_started:]] == ["rollout"]


def test_a_process_that_dies_is_started_again(world: World, supervisor: Supervisor) -> None:
    world.crashes = {"runner": 2}
    assert supervisor.train() is Outcome.FINISHED
    assert world.log.count("start runner") == 3
    backoffs = [e for e in events(world, "process") if e["state"] == "backoff"]
    assert [(e["name"], e["exit_code"]) for e in backoffs] == [("runner", 1), ("runner", 1)]


def test_a_process_that_dies_too_often_stops_the_run(world: World, supervisor: Supervisor) -> None:
    world.crashes = {"trainer": 9}
    with pytest.raises(SetupError) as caught:
        supervisor.train()
    message = str(caught.value)
    assert "trainer ended after 2 restarts with exit code 1" in message
    assert str(world.folder.log("trainer")) in message
    assert message.endswith("trainer broke")
    assert "--resume" in message
    assert alive(world) == []


def test_ctrl_c_ends_all_in_order(
    world: World, supervisor: Supervisor, signals: StopSignals
) -> None:
    def interrupt() -> None:
        if any(handle.name == "trainer" for handle in world.handles) and not signals.count:
            signals._received(signal.SIGINT, None)

    world.on_sleep = interrupt
    assert supervisor.train() is Outcome.INTERRUPTED
    assert [line for line in world.log if line.startswith("terminate")] == [
        "terminate runner",
        "terminate trainer",
        "terminate rollout",
    ]
    assert signals.exit_code == 130
    assert alive(world) == []


def test_the_second_ctrl_c_kills_at_once(
    world: World, supervisor: Supervisor, signals: StopSignals
) -> None:
    def interrupt() -> None:
        for handle in world.handles:
            handle.obeys = False
        if world.now > 30.0 and signals.count < 2:
            signals._received(signal.SIGINT, None)

    world.on_sleep = interrupt
    assert supervisor.train() is Outcome.INTERRUPTED
    assert alive(world) == []
    assert world.now < 32.0  # stop_timeout_s is 20
    assert "kill rollout" in world.log


def test_a_process_that_does_not_obey_is_killed_in_time(
    world: World, supervisor: Supervisor, signals: StopSignals
) -> None:
    def interrupt() -> None:
        if world.now > 30.0 and not signals.count:
            signals._received(signal.SIGTERM, None)
            for handle in world.handles:
                handle.obeys = handle.name != "runner"

    world.on_sleep = interrupt
    supervisor.train()
    assert "kill runner" in world.log
    assert "kill trainer" not in world.log
    assert signals.exit_code == 143


def test_training_goes_on_where_it_stopped(
    world: World, supervisor: Supervisor, signals: StopSignals
) -> None:
    world.folder.metrics.write_text('{"event":"train_step","train_step":3}\n')
    supervisor._tools.observer.skip_history()
    supervisor.train()
    # Too late to evaluate the initial policy.
    assert world.jobs() == ["after 1", "after 0"]


def test_a_service_that_does_not_come_up_is_an_error(world: World, supervisor: Supervisor) -> None:
    world.service = lambda: None  # type: ignore[method-assign]
    supervisor._tools.observer._read_service = world.service
    with pytest.raises(SetupError, match="a ready worker of the rollout service in vain"):
        supervisor.train()
    assert alive(world) == []


def test_the_final_weights_are_in_service_before_they_are_evaluated(
    world: World, supervisor: Supervisor
) -> None:
    world.latest = WeightsRef(policy_version=8, path="weights/step-000007")
    supervisor.train()
    assert world.published == [world.latest]


def test_a_stale_address_of_the_service_is_removed_first(
    world: World, supervisor: Supervisor
) -> None:
    world.folder.set_status("rollout", {"url": "http://127.0.0.1:1", "pid": 1})
    supervisor.train()
    assert world.folder.status("rollout") == {}
