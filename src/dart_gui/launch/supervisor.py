"""Starts the modules of a run as processes, keeps them alive, and ends them.

      rollout service ──────────────────────────────────────────────────────────▶ stop
         │ ready    floor, before      runner  ┐                after
         └────────▶ evaluator ───────▶ trainer ┼─ finished ───▶ evaluator ──▶ report
                              during  evaluator ┘  or enough

Each tick reads the truth (processes, metrics, service, ledger) and acts on what it finds; what is
left to do comes from the run's folder (:mod:`dart_gui.launch.plan`). So the supervisor may be
killed at any point: its children end with it, and the next one goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from dart_gui.config import Config
from dart_gui.errors import SetupError
from dart_gui.launch import plan
from dart_gui.launch.children import Children
from dart_gui.launch.during import EvalsDuring
from dart_gui.launch.observe import Observer
from dart_gui.launch.plan import EvalJob
from dart_gui.launch.process import (
    ManagedProcess,
    ProcessSpec,
    ProcessState,
    describe_exit,
    last_lines,
)
from dart_gui.launch.progress import Progress
from dart_gui.launch.run_folder import RunFolder
from dart_gui.launch.signals import StopSignals
from dart_gui.launch.stopping import Stop, by_limit
from dart_gui.launch.view import View
from dart_gui.launch.watch import Watch
from dart_gui.metrics import MetricsWriter
from dart_gui.types import WeightsRef

TICK_S = 0.2
SERVICE_TIMEOUT_S = 300.0
"""For the service to load the model and for it to take new weights; a large model takes minutes."""


class Outcome(StrEnum):
    FINISHED = "finished"
    INTERRUPTED = "interrupted"


class StopRequestedError(Exception):
    """A signal came; never leaves this module."""


@dataclass(frozen=True, slots=True)
class Timing:
    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What the supervisor acts through; tests replace each."""

    children: Children
    observer: Observer
    view: View
    signals: StopSignals
    metrics: MetricsWriter
    watch: Watch
    latest_weights: Callable[[], WeightsRef | None]
    publish: Callable[[WeightsRef], None]
    timing: Timing = Timing()


class Supervisor:
    def __init__(self, folder: RunFolder, config: Config, tools: Tools) -> None:
        self._folder = folder
        self._config = config
        self._tools = tools
        self._processes: list[ManagedProcess] = []
        self._phase = ""
        self._during = EvalsDuring(
            folder,
            config,
            latest_weights=tools.latest_weights,
            metrics=tools.metrics,
            say=tools.view.say,
        )

    def train(self) -> Outcome:
        """Everything that is left of the run.

        Raises:
            SetupError: a process ended too often, or something awaited did not come in time.
        """

        def work() -> None:
            self._serve()
            for job in plan.jobs_before(self._config, self._tools.observer.progress):
                self._evaluate(job)
            if not plan.is_trained(self._folder, self._config):
                self._train()
            self._finish_evaluations()
            after = plan.jobs_after(self._folder, self._config, self._tools.observer.progress)
            if after:
                self._serve_latest()
            for job in after:
                self._evaluate(job)
            self._during.settle_final(self._tools.observer.progress)

        return self._supervise(work)

    def evaluate(self, jobs: Sequence[EvalJob]) -> Outcome:
        """Only evaluate, by the model that the configuration names."""

        def work() -> None:
            if any(job.phase != "floor" for job in jobs):
                self._serve()
            for job in jobs:
                self._evaluate(job)

        return self._supervise(work)

    def play(self, arguments: Sequence[str], *, needs_service: bool) -> Outcome:
        """One episode, by the process ``player``."""

        def work() -> None:
            if needs_service:
                self._serve()
            player = self._start(self._tools.children.player(arguments))
            self._until(lambda: player.state is ProcessState.FINISHED, phase="playing")

        return self._supervise(work)

    def _supervise(self, work: Callable[[], None]) -> Outcome:
        try:
            work()
            return Outcome.FINISHED
        except StopRequestedError:
            return Outcome.INTERRUPTED
        finally:
            self._stop([each for each in self._processes if each.name != "rollout"])
            self._stop(self._processes)
            self._tools.observer.look(self._tools.timing.now())

    # --- the stages ------------------------------------------------------------------------

    def _serve(self) -> None:
        """Start the rollout service, and wait until a worker of it is ready."""
        # An address of an earlier launch may belong to a stranger by now.
        (self._folder.path / "status" / "rollout.json").unlink(missing_ok=True)
        if self._config.rollout.url:
            self._folder.set_status("rollout", {"url": self._config.rollout.url, "pid": 0})
        else:
            self._start(self._tools.children.rollout())
        self._until(
            lambda: self._ready_version() is not None,
            phase="starting the rollout service",
            awaited="a ready worker of the rollout service",
            timeout_s=self._service_timeout_s,
        )

    @property
    def _service_timeout_s(self) -> float:
        """A vLLM server loads its model in a time of its own."""
        uses_vllm = self._config.rollout.engine == "vllm"
        return SERVICE_TIMEOUT_S + (self._config.vllm.start_timeout_s if uses_vllm else 0.0)

    def _serve_latest(self) -> None:
        """Have the newest weights in service: one that was started again may serve older ones."""
        weights = self._tools.latest_weights()
        if weights is None:
            return
        version = self._ready_version()
        if version is None or version < weights.policy_version:
            self._tools.publish(weights)
        self._until(
            lambda: (self._ready_version() or 0) >= weights.policy_version,
            phase="loading the final weights",
            awaited=f"policy version {weights.policy_version} in service",
            timeout_s=SERVICE_TIMEOUT_S,
        )

    def _train(self) -> None:
        stop = self._tools.watch.decision() or self._train_until_enough()
        plan.mark_trained(self._folder, self._config, stop)
        self._tools.metrics.log("stop", **stop.to_json())
        self._tools.view.say(f"training ends: {stop.text}")
        # Marked first: a supervisor that is killed from here on does not train any further.
        self._end_training()

    def _end_training(self) -> None:
        """The trainer ends its step and writes its last checkpoint, however long that takes: nobody
        would make up for it."""
        for trainer in [each for each in self._processes if each.name == "trainer"]:
            trainer.stop(timeout_s=float("inf"))
            self._stop([each for each in self._processes if each.name == "runner"])
            self._until(lambda: trainer.has_ended, phase="ending the training")  # noqa: B023

    def _train_until_enough(self) -> Stop:
        self._folder.set_status("trainer", {})  # what an earlier one said of its end
        if not self._config.sessions.enabled:  # with them, foreign programs play the episodes
            self._start(self._tools.children.runner())
        trainer = self._start(self._tools.children.trainer())
        self._tools.watch.begin(self._tools.timing.now())

        def is_enough() -> bool:
            self._mind_alarms()
            finished = trainer.state is ProcessState.FINISHED
            if finished or self._tools.watch.decision() is not None:
                return True
            self._mind_evaluation(self._during.next_job)
            return False

        self._until(is_enough, phase="training")
        train_step = int(self._folder.status("trainer").get("train_step", 0))
        return self._tools.watch.decision() or by_limit(self._config, train_step)

    def _mind_alarms(self) -> None:
        now = self._tools.timing.now()
        for change in self._tools.watch.look(self._tools.observer.service, now):
            self._tools.metrics.log("alarm", **change.event())
            reading = change.reading
            self._tools.view.say(
                f"ALARM {reading.key}: {reading.text}"
                if change.raised
                else f"alarm {reading.key} is over"
            )

    def _mind_evaluation(self, choose: Callable[[Progress], EvalJob | None]) -> bool:
        """Keep one evaluation of pinned weights going, beside whatever else goes on. True where
        there is none, and none to be made."""
        running = next((each for each in self._processes if each.name == "evaluator"), None)
        if running is not None and not running.has_ended:
            return False
        if running is not None and running.state is ProcessState.FAILED:
            self._processes.remove(running)
            self._during.give_up(
                f"its process ended with {describe_exit(running.exit_code)}, see {running.spec.log}"
            )
            return False  # the next look reads that it is given up
        self._during.settle(self._tools.observer.progress)
        job = choose(self._tools.observer.progress)
        if job is not None:
            self._folder.set_status("evaluator", {})
            self._start(self._tools.children.evaluator(job.arguments, vital=False))
        return job is None

    def _finish_evaluations(self) -> None:
        """Those that training has left behind: the last one may be the best."""
        choose = lambda _: self._during.unfinished_job()  # noqa: E731
        self._until(
            lambda: self._mind_evaluation(choose), phase="finishing the evaluations while training"
        )

    def _evaluate(self, job: EvalJob) -> None:
        self._folder.set_status("evaluator", {})
        evaluator = self._start(self._tools.children.evaluator(job.arguments))
        self._until(lambda: evaluator.state is ProcessState.FINISHED, phase=job.title)

    # --- the tick --------------------------------------------------------------------------

    def _until(
        self,
        condition: Callable[[], bool],
        *,
        phase: str,
        awaited: str = "",
        timeout_s: float = float("inf"),
    ) -> None:
        """Tick until the condition holds.

        Raises:
            StopRequestedError: a signal came.
            SetupError: a process failed for good, or the time is over.
        """
        self._phase = phase
        deadline = self._tools.timing.monotonic() + timeout_s
        while True:
            self._tick()
            if self._tools.signals.stop:
                raise StopRequestedError
            if condition():
                return
            if self._tools.timing.monotonic() >= deadline:
                raise SetupError(
                    f"waited {timeout_s:.0f} s for {awaited} in vain. The logs are in "
                    f"{self._folder.path}/logs. {self._how_to_resume()}"
                )
            self._tools.timing.sleep(TICK_S)

    def _tick(self) -> None:
        for process in self._processes:
            before = process.state
            process.tick()
            if process.state is not before:
                self._changed(process)
            if process.state is ProcessState.FAILED and process.spec.vital:
                raise SetupError(self._why_failed(process))
        now = self._tools.timing.now()
        self._tools.observer.look(now)
        self._show(now)

    def _show(self, now: float) -> None:
        self._tools.view.show(
            self._tools.observer.snapshot(
                self._config,
                run_id=self._folder.run_id,
                phase=self._phase,
                detail=self._detail(),
                now=now,
                processes=self._processes,
            )
        )

    def _detail(self) -> str:
        """How far an evaluation is, while there is one."""
        running = any(p.name == "evaluator" and p.pid is not None for p in self._processes)
        return str(self._folder.status("evaluator").get("text", "")) if running else ""

    def _changed(self, process: ManagedProcess) -> None:
        self._tools.metrics.log(
            "process",
            name=process.name,
            state=process.state.value,
            exit_code=process.exit_code,
            restarts=process.restarts,
        )
        if process.state is ProcessState.BACKOFF:
            self._tools.view.say(
                f"{process.name} ended with {describe_exit(process.exit_code)}, starting it again "
                f"({process.restarts_in_a_row + 1} of {process.spec.max_restarts}); "
                f"log: {process.spec.log}"
            )

    def _ready_version(self) -> int | None:
        service = self._tools.observer.service
        return service.ready_version if service else None

    # --- processes -------------------------------------------------------------------------

    def _start(self, spec: ProcessSpec) -> ManagedProcess:
        process = ManagedProcess(spec, now=self._tools.timing.monotonic)
        # One of a name: the evaluator of the last job makes place for that of the next.
        self._processes = [each for each in self._processes if each.name != spec.name]
        self._processes.append(process)
        process.start()
        return process

    def _stop(self, processes: Sequence[ManagedProcess]) -> None:
        """Ask them all to end, and see to it that they do: each has its stop_timeout_s, and the
        second Ctrl-C is the end of patience. May be called again."""
        self._phase = "stopping" if self._tools.signals.stop else self._phase
        for process in processes:
            process.stop()
        while not all(process.has_ended or _never_ran(process) for process in processes):
            for process in processes:
                if self._tools.signals.at_once:
                    process.kill()
                process.tick()
            self._show(self._tools.timing.now())
            self._tools.timing.sleep(TICK_S / 2)

    def _why_failed(self, process: ManagedProcess) -> str:
        num = process.restarts_in_a_row
        times = f"after {num} restarts " if num else ""
        tail = last_lines(process.spec.log)
        return (
            f"the process {process.name} ended {times}with {describe_exit(process.exit_code)}, so "
            f"the run is stopped. {self._how_to_resume()} Its log {process.spec.log} ends with:\n"
            + (tail or "(nothing)")
        )

    def _how_to_resume(self) -> str:
        return (
            "When the cause is mended, continue with "
            f"`dart-gui train --resume {self._folder.path}`."
        )


def _never_ran(process: ManagedProcess) -> bool:
    return process.state is ProcessState.IDLE
