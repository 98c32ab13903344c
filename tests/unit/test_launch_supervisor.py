"""The supervisor over scripted processes, on a clock that moves when it sleeps."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dart_gui import config as config_module
from dart_gui.config import Config
from dart_gui.errors import SetupError
from dart_gui.launch import pinned, run_folder
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
    trained_since: float = 0.0
    trained: int = 0  # versions
    rate: Callable[[], float] = lambda: 0.5  # success of the next evaluation

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
            self.trained_since = self.now
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
                "policy_version": int(named.get("--policy-version", 0)),
                "success_rate": self.rate(),
                "num_episodes": 100,
            }
            self.write(event)

    def write(self, event: Mapping[str, Any]) -> None:
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


# --- while it trains ---------------------------------------------------------------------------


def train_steps(world: World, *, every_s: float, rates: Sequence[float] = ()) -> None:
    """The trainer publishes a version each ``every_s``; evaluations while training give ``rates``,
    the last one again and again."""
    left = list(rates)

    def step() -> None:
        trainers = [each for each in world.handles if each.name == "trainer" and each.code is None]
        due = int((world.now - world.trained_since) / every_s) if trainers else 0
        if trainers and due > world.trained:
            world.trained = due
            path = world.folder.path / "weights" / f"step-{due:06d}"
            path.mkdir(parents=True)
            (path / "model.safetensors").write_text(f"weights {due}")
            world.latest = WeightsRef(policy_version=due, path=str(path))
            event = {"event": "train_step", "train_step": due, "policy_version": due}
            world.write({"at": world.now, **event})

    world.on_sleep = step
    world.rate = lambda: left.pop(0) if len(left) > 1 else (left or [0.5])[0]


def configure(world: World, supervisor: Supervisor, tree: Mapping[str, Any]) -> Supervisor:
    """A supervisor of the same world with another configuration."""
    world.config = config_module.from_dict(
        {"launch": {"max_restarts": 1, "tensorboard": False}, **tree}, source="test"
    )
    watch = Watch(world.config)
    observer = Observer(
        MetricsTail(world.folder.metrics), read_service=world.service, folds=[watch.fold]
    )
    observer.skip_history()
    children = Children(world.folder, world.config, world.spawn)
    tools = replace(supervisor._tools, children=children, observer=observer, watch=watch)
    return Supervisor(world.folder, world.config, tools)


DURING = {"eval": {"every": 2, "before_after": False}}


def test_weights_are_evaluated_while_training_goes_on(world: World, supervisor: Supervisor) -> None:
    world.train_s = 100.0
    train_steps(world, every_s=4.0, rates=[0.4, 0.6, 0.5])
    assert configure(world, supervisor, DURING).train() is Outcome.FINISHED
    evals = events(world, "eval")
    assert {e["phase"] for e in evals} == {"during"}
    versions = [e["policy_version"] for e in evals]
    assert versions[:2] == [2, 4]
    assert all(later - earlier >= 2 for earlier, later in itertools.pairwise(versions))
    assert len(versions) >= 8
    # Neither the runner nor the service was touched for it.
    assert world.log.count("start runner") == world.log.count("start rollout") == 1
    assert pinned.read_best(world.folder)["policy_version"] == 4
    assert pinned.pins(world.folder) == []


def test_the_last_evaluation_is_finished_after_training(
    world: World, supervisor: Supervisor
) -> None:
    world.train_s = 9.0  # version 2 comes after 8 seconds, its evaluation takes five
    train_steps(world, every_s=4.0, rates=[0.4])
    configure(world, supervisor, DURING).train()
    assert [e["policy_version"] for e in events(world, "eval")] == [2]
    assert world.log.index("terminate runner") < len(world.log) - 1
    assert pinned.read_best(world.folder)["policy_version"] == 2


def test_an_evaluation_that_was_interrupted_is_made_after_the_resume(
    world: World, supervisor: Supervisor, signals: StopSignals
) -> None:
    train_steps(world, every_s=4.0, rates=[0.4])
    step = world.on_sleep

    def interrupt() -> None:
        step()
        if alive(world).count("evaluator") and not signals.count:
            signals._received(signal.SIGINT, None)

    world.on_sleep = interrupt
    first = configure(world, supervisor, DURING)
    assert first.train() is Outcome.INTERRUPTED
    assert [one.policy_version for one in pinned.pins(world.folder)] == [2]
    signals.count = 0
    world.on_sleep = lambda: None
    assert configure(world, supervisor, DURING).train() is Outcome.FINISHED
    assert [e["policy_version"] for e in events(world, "eval")] == [2]


def test_an_evaluation_that_cannot_be_made_does_not_end_the_training(
    world: World, supervisor: Supervisor
) -> None:
    world.train_s = 40.0
    world.crashes = {"evaluator": 2}  # max_restarts is 1
    train_steps(world, every_s=4.0, rates=[0.4])
    assert configure(world, supervisor, DURING).train() is Outcome.FINISHED
    (given_up,) = events(world, "eval_given_up")
    assert given_up["policy_version"] == 2
    assert "exit code 1" in given_up["reason"]
    assert next(e["policy_version"] for e in events(world, "eval")) >= 4


def test_training_stops_when_the_target_is_reached(world: World, supervisor: Supervisor) -> None:
    world.train_s = 1000.0
    train_steps(world, every_s=4.0, rates=[0.4, 0.8])
    tree = DURING | {"run": {"target_success": 0.7}}
    assert configure(world, supervisor, tree).train() is Outcome.FINISHED
    assert world.now < 60.0
    assert [e["policy_version"] for e in events(world, "eval")] == [2, 4]
    (stop,) = events(world, "stop")
    assert stop["cause"] == "run.target_success"
    assert "80.0 % in the evaluation of policy version 4" in stop["text"]
    assert "terminate trainer" in world.log
    assert "kill trainer" not in world.log
    assert alive(world) == []
    # It stays so after a resume, until the target is another.
    num_started = len(world.handles)
    configure(world, supervisor, tree).train()
    assert [handle.name for handle in world.handles[num_started:]] == ["rollout"]
    world.train_s = 1.0
    configure(world, supervisor, DURING).train()
    assert "trainer" in [handle.name for handle in world.handles[num_started:]]


def test_no_evaluation_begins_when_training_is_enough(world: World, supervisor: Supervisor) -> None:
    """Ten versions pass while one is evaluated, so the next one is due the moment it ends."""
    world.train_s = 1000.0
    train_steps(world, every_s=0.5, rates=[0.4, 0.8])
    configure(world, supervisor, DURING | {"run": {"target_success": 0.7}}).train()
    assert [e["success_rate"] for e in events(world, "eval")] == [0.4, 0.8]
    assert world.log.count("start evaluator") == 2


def test_an_alarm_is_raised_once_and_may_stop_the_training(
    world: World, supervisor: Supervisor
) -> None:
    world.train_s = 1000.0
    tree = {
        "eval": {"before_after": False},
        "alarms": {"idle_s": 50.0, "stop_on": ["idle"]},
    }
    configure(world, supervisor, tree).train()
    assert 50.0 < world.now < 60.0
    raised = events(world, "alarm")
    assert {e["subject"] for e in raised} == {"runner", "trainer", "rollout w0"}
    assert {e["state"] for e in raised} == {"raised"}
    assert len(raised) == 3
    (stop,) = events(world, "stop")
    assert stop["cause"] == "alarms.stop_on"


def test_a_limit_is_recorded_as_the_reason(world: World, supervisor: Supervisor) -> None:
    configure(world, supervisor, {"run": {"max_train_steps": 7}}).train()
    assert [e["cause"] for e in events(world, "stop")] == ["run.max_train_steps"]


def test_the_trainer_may_take_its_time_to_end(world: World, supervisor: Supervisor) -> None:
    """The last step of a large model takes longer than stop_timeout_s."""
    world.train_s = 1000.0
    train_steps(world, every_s=4.0, rates=[0.9])
    step = world.on_sleep
    asked_at: list[float] = []

    def slowly() -> None:
        step()
        for trainer in [each for each in world.handles if each.name == "trainer"]:
            trainer.obeys = False
            if "terminate trainer" in world.log:
                asked_at.append(world.now)
                if world.now > asked_at[0] + 100.0 and trainer.code is None:
                    trainer.code = 0

    world.on_sleep = slowly
    configure(world, supervisor, DURING | {"run": {"target_success": 0.7}}).train()
    assert "kill trainer" not in world.log
