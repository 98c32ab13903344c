"""What the commands of ``dart-gui`` do. Each gives an exit code; a failure is a ``DartError``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dart_gui import config as config_module
from dart_gui.config import Config
from dart_gui.files import write_whole
from dart_gui.launch import (
    pinned,
    plan,
    preflight,
    run_folder,
    training_memory,
    vllm_checks,
)
from dart_gui.launch.children import Children, local_spawner
from dart_gui.launch.ledger import LedgerView
from dart_gui.launch.observe import Observer
from dart_gui.launch.progress import Event, MetricsTail, Progress, number
from dart_gui.launch.report import best_text, format_rate, write_report
from dart_gui.launch.run_folder import RunFolder
from dart_gui.launch.service import ServiceProbe
from dart_gui.launch.signals import StopSignals
from dart_gui.launch.stopping import Stop, StopCause
from dart_gui.launch.supervisor import Outcome, Supervisor, Tools
from dart_gui.launch.view import View
from dart_gui.launch.watch import Watch
from dart_gui.metrics import MetricsWriter
from dart_gui.types import WeightsRef

if TYPE_CHECKING:
    from dart_gui.launch.tensorboard import TensorBoardSink

PUBLISH_TIMEOUT_S = 30.0


def start_training(
    console: Console,
    config_path: str | None,
    overrides: Sequence[str],
    *,
    name: str | None,
    run_dir: str | None,
) -> int:
    config = preflight.check(config_module.load(config_path, overrides))
    preflight.check_pool(config)
    preflight.check_lora(config)
    place = run_folder.place_for(config, name=name, run_dir=run_dir, now=time.time())
    folder = run_folder.create(config, place)
    greeting = f"run {folder.run_id} in {shown(folder.path)}"
    return _train(console, folder, config, greeting)


def resume_training(
    console: Console, run: str, config_path: str | None, overrides: Sequence[str]
) -> int:
    """The run keeps its own configuration; overrides change it from here on."""
    folder = run_folder.find(run, runs_dir(overrides, config_path))
    config = resolved(folder, overrides)
    preflight.check(config)
    LedgerView(folder, config).check()
    preflight.check_pool(config)
    preflight.check_lora(config, before=folder.load_config())
    progress = Progress()
    for event in MetricsTail(folder.metrics).read():
        progress.fold(event)
    if plan.is_finished(folder, config, progress):
        stop = plan.why_trained(folder)
        console.print(
            f"run {folder.run_id} is finished: {progress.train_step} train steps, report in "
            f"{shown(folder.report)}. {_how_to_train_on(folder, config, stop)}",
            highlight=False,
            soft_wrap=True,
        )
        return 0
    greeting = f"resuming run {folder.run_id} at train step {progress.train_step}"
    return _train(console, folder, config, greeting, save_config=bool(overrides))


def _how_to_train_on(folder: RunFolder, config: Config, stop: Stop | None) -> str:
    command = f"dart-gui train --resume {shown(folder.path)}"
    if stop is None or stop.cause is StopCause.TIME:
        what, key = "raise its limit", f"run.max_time_s {2 * config.run.max_time_s:g}"
    elif stop.cause is StopCause.STEPS:
        what, key = "raise its limit", f"run.max_train_steps {2 * config.run.max_train_steps}"
    elif stop.cause is StopCause.ALARM:
        what, key = "mend the cause and change what it stops on", "alarms.stop_on '[]'"
    else:
        what, key = "change what it stops on", f"{stop.cause.value} 0"
    reason = f"It ended since {stop.text.rstrip('.')}. " if stop else ""
    return f"{reason}To train on, {what}: `{command} --{key}`."


def runs_dir(overrides: Sequence[str], config_path: str | None = None) -> str:
    """Where the runs are; other overrides are of the run that is looked for."""
    only = [each for each in overrides if each.startswith("run.dir=")]
    return config_module.load(config_path, only).run.dir


def resolved(folder: RunFolder, overrides: Sequence[str]) -> Config:
    return preflight.absolute(config_module.load(folder.config, overrides))


def _train(
    console: Console,
    folder: RunFolder,
    config: Config,
    greeting: str,
    *,
    save_config: bool = False,
) -> int:
    with run_folder.locked(folder), StopSignals() as signals:
        console.print(greeting, highlight=False, soft_wrap=True)
        if save_config:
            write_whole(folder.config, config_module.dump(config))
        with supervision(console, folder, config, signals, with_ledger=True) as supervisor:
            outcome = supervisor.train()
        if outcome is Outcome.INTERRUPTED:
            console.print(
                f"stopped; everything is saved. Continue with `dart-gui train --resume "
                f"{shown(folder.path)}`; `dart-gui report {shown(folder.path)}` draws the curves.",
                highlight=False,
                soft_wrap=True,
            )
            return signals.exit_code
    report = write_report(folder, config)
    evals = [event for event in MetricsTail(folder.metrics).read() if event.get("event") == "eval"]
    print_evals(console, [event for event in evals if event.get("phase") != "during"])
    if stop := plan.why_trained(folder):
        console.print(f"training ended: {stop.text}", highlight=False, soft_wrap=True)
    if best := best_text(pinned.read_best(folder)):
        console.print(f"best: {best}", highlight=False, soft_wrap=True)
    console.print(f"finished; report: {shown(report)}", highlight=False)
    return 0


@contextlib.contextmanager
def supervision(
    console: Console,
    folder: RunFolder,
    config: Config,
    signals: StopSignals,
    *,
    with_ledger: bool = False,
) -> Iterator[Supervisor]:
    """A supervisor with everything that it acts through, for as long as the context lasts."""
    with contextlib.ExitStack() as stack:
        ledger = LedgerView(folder, config) if with_ledger else None
        watch = Watch(config)
        observer = Observer(
            MetricsTail(folder.metrics),
            read_service=ServiceProbe(folder, config).status,
            read_counts=ledger.counts if ledger else dict,
            sink=_sink(folder, config) if with_ledger else None,
            folds=[watch.fold],
        )
        stack.callback(observer.close)
        observer.skip_history()
        metrics = MetricsWriter(folder.metrics, "supervisor")
        stack.callback(metrics.close)
        if ledger:
            stack.callback(ledger.close)
        tools = Tools(
            children=Children(folder, config, local_spawner(config)),
            observer=observer,
            view=stack.enter_context(View(console, now=time.monotonic)),
            signals=signals,
            metrics=metrics,
            watch=watch,
            latest_weights=ledger.latest_weights if ledger else lambda: None,
            publish=publisher(folder, config),
        )
        yield Supervisor(folder, config, tools)


def _sink(folder: RunFolder, config: Config) -> TensorBoardSink | None:
    if not config.launch.tensorboard:
        return None
    from dart_gui.launch.tensorboard import TensorBoardSink

    return TensorBoardSink(folder.tensorboard)


def publisher(folder: RunFolder, config: Config) -> Callable[[WeightsRef], None]:
    def publish(weights: WeightsRef) -> None:
        from dart_gui.rollout.client import RolloutClient
        from dart_gui.rollout.token import read_token

        async def post() -> None:
            url, token = ServiceProbe(folder, config).url, read_token(folder.path, config)
            async with RolloutClient(url, token, timeout_s=PUBLISH_TIMEOUT_S) as client:
                await client.publish(weights)

        asyncio.run(post())

    return publish


def print_evals(console: Console, evals: Sequence[Event]) -> None:
    """One column an evaluation, one row a task."""
    if not evals:
        return
    table = Table(title="success on held-out seeds, % (95 % interval)", box=SIMPLE_HEAD)
    table.add_column("task")
    for event in evals:
        table.add_column(_eval_title(event), justify="right", no_wrap=True)
    digits = 1 if len(evals) < 3 else 0  # five columns are to fit into 80 characters
    per_task = [event.get("per_task") or {} for event in evals]
    for task in sorted({task for each in per_task for task in each}):
        cells = [format_rate(each.get(task, {}), digits) for each in per_task]
        table.add_row(task.partition("/")[2] or task, *cells)
    table.add_section()
    counts = [int(sum(number(e, "num_episodes") or 0 for e in each.values())) for each in per_task]
    table.add_row("all", *(format_rate(event, digits) for event in evals))
    table.add_row("episodes", *map(str, counts))
    console.print(table)


def _eval_title(event: Event) -> str:
    phase = event.get("phase")
    if phase == "floor":
        return "random"
    temperature = number(event, "temperature") or 0.0
    decoding = f"T = {temperature:g}" if temperature else "greedy"
    return f"{phase}\n{decoding}" if phase in ("before", "after") else decoding


def run_report(console: Console, run: str, overrides: Sequence[str]) -> int:
    folder = run_folder.find(run, runs_dir(overrides))
    console.print(f"report: {shown(write_report(folder, folder.load_config()))}", highlight=False)
    return 0


def list_tasks(console: Console, suite_name: str) -> int:
    from dart_gui.env.suites import SUITES, get_suite

    if not suite_name:
        for name, place in sorted(SUITES.known().items()):
            console.print(f"{name}  ({place})", highlight=False, soft_wrap=True)
        return 0
    suite = get_suite(suite_name)
    for task_id in suite.task_ids:
        mark = "  (default)" if task_id in suite.default_tasks else ""
        console.print(task_id + mark, highlight=False)
    return 0


def show_config(console: Console, config_path: str | None, overrides: Sequence[str]) -> int:
    """As TOML; what is worth knowing of it follows as comments."""
    config = config_module.load(config_path, overrides)
    notes = [
        *vllm_checks.dry_run_lines(config),
        *training_memory.dry_run_lines(config),
        *preflight.dry_run_lines(config),
    ]
    text = "\n".join([config_module.dump(config), *notes])
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    return 0


def shown(path: Path) -> str:
    """Relative to where the user is, where that is shorter."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
