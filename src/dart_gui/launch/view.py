"""What the terminal shows while a run goes on: a live panel, or a line now and then where it is no
terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from dart_gui.config import Config
from dart_gui.launch.process import ProcessState
from dart_gui.launch.progress import Event, Progress, eta_s, number
from dart_gui.launch.service import ServiceView

PLAIN_EVERY_S = 10.0

UNSETTLED = (ProcessState.BACKOFF, ProcessState.STOPPING, ProcessState.FAILED)
_COLOURS = {
    ProcessState.RUNNING: "green",
    ProcessState.FINISHED: "green",
    ProcessState.BACKOFF: "yellow",
    ProcessState.STOPPING: "yellow",
    ProcessState.FAILED: "red",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessView:
    name: str
    state: ProcessState
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that a view shows, at one moment."""

    run_id: str
    phase: str  # what the supervisor is doing, in a few words
    detail: str = ""  # how far that is
    now: float  # Unix seconds
    config: Config
    progress: Progress
    processes: Sequence[ProcessView] = ()
    service: ServiceView | None = None
    worker_busy: Mapping[str, float] = field(default_factory=dict)  # share of the last seconds
    counts: Mapping[str, int] = field(default_factory=dict)  # groups of the ledger, by state


def elapsed_s(snapshot: Snapshot) -> float:
    """Seconds of training; goes on between train steps while it trains."""
    at = snapshot.progress.trained_at
    since = snapshot.now - at if at is not None and _trains(snapshot) else 0.0
    return min(snapshot.progress.elapsed_s() + max(0.0, since), snapshot.config.run.max_time_s)


def _trains(snapshot: Snapshot) -> bool:
    return any(
        each.name == "trainer" and each.state is ProcessState.RUNNING for each in snapshot.processes
    )


def figures(snapshot: Snapshot) -> dict[str, str]:
    """The figures of the view by name, as text; a dash for what is not known (yet)."""
    progress, run = snapshot.progress, snapshot.config.run
    train, runner = progress.last_train_step, progress.last_runner
    elapsed = elapsed_s(snapshot)
    eta = eta_s(
        elapsed_s=elapsed,
        max_time_s=run.max_time_s,
        train_step=progress.train_step,
        max_train_steps=run.max_train_steps,
        step_s=progress.train_step_s() or 0.0,
    )
    limit = f"/{run.max_train_steps}" if run.max_train_steps else ""
    return {
        "success": (
            f"{percent(progress.success_rate)} of the last {len(progress.episodes)} episodes"
        ),
        "train step": f"{progress.train_step}{limit}",
        "elapsed": f"{clock_text(elapsed)} of {clock_text(run.max_time_s)}",
        "ETA": clock_text(eta),
        "staleness": (
            f"{text(number(train, 'staleness_mean'))} mean, "
            f"{text(number(train, 'staleness_max'), '.0f')} max "
            f"(limit {snapshot.config.data.max_staleness})"
        ),
        "episodes": f"{progress.num_episodes}, {_rate(progress, snapshot.now)}/min",
        "samples": f"{text(progress.train_samples_per_s(), '.1f')}/s",
        "entropy": text(number(train, "entropy"), ".3f"),
        "KL": text(number(train, "kl_rollout"), ".2g"),
        "clipped": percent(number(train, "clip_fraction")),
        "loss": text(number(train, "loss"), ".4f"),
        "environments": busy_envs(runner),
        "trainer": percent(progress.trainer_utilisation()),
        "workers": workers_text(snapshot),
        "queues": queues_text(snapshot),
        "evaluated": evaluated_text(progress),
        "alarms": alarms_text(progress),
    }


WIDE = ("workers", "queues", "evaluated", "alarms")
"""Figures that take a line of their own in the panel."""


def evaluated_text(progress: Progress) -> str:
    """The last and the best evaluation while training."""
    during = [event for event in progress.evals if event.get("phase") == "during"]
    if not during:
        return "-"
    best = max(during, key=lambda event: number(event, "success_rate") or 0.0)
    return f"{_evaluated(during[-1])} (best {_evaluated(best)})"


def _evaluated(event: Event) -> str:
    return f"v{event.get('policy_version')} {percent(number(event, 'success_rate'))}"


def alarms_text(progress: Progress) -> str:
    return ", ".join(sorted(progress.alarms)) or "-"


def _rate(progress: Progress, now: float) -> str:
    return text(progress.episodes_per_min(now), ".0f")


def busy_envs(runner: Mapping[str, object]) -> str:
    num_busy, num_envs = number(runner, "num_envs_busy"), number(runner, "num_envs")
    if num_busy is None or num_envs is None:
        return "-"
    share = percent(number(runner, "env_utilisation"))
    return f"{num_busy:.0f}/{num_envs:.0f} leased, {share} of the last second"


def workers_text(snapshot: Snapshot) -> str:
    """``w0 v12 ready 83 %``, each worker, and the version that they should have."""
    if snapshot.service is None:
        return "no answer"
    each = [
        f"{worker.worker_id} v{worker.policy_version} {worker.state} "
        f"{percent(snapshot.worker_busy.get(worker.worker_id))}"
        for worker in snapshot.service.workers
    ]
    return ", ".join(each) + f" (newest v{snapshot.service.desired_version})"


def queues_text(snapshot: Snapshot) -> str:
    """Requests that wait for a worker, and the groups of the ledger by state."""
    requests = [f"requests {snapshot.service.queue_size}"] if snapshot.service else []
    groups = " ".join(f"{count} {name}" for name, count in snapshot.counts.items())
    return ", ".join(requests + ([f"groups: {groups}"] if groups else [])) or "-"


def plain_line(snapshot: Snapshot) -> str:
    shown = figures(snapshot)
    states = " ".join(
        f"{process.name}:{process.state}"
        for process in snapshot.processes
        if process.state in UNSETTLED
    )
    parts = [" ".join(filter(None, [snapshot.phase, snapshot.detail]))]
    if _trains(snapshot) or snapshot.progress.train_step:
        parts.append(f"elapsed {shown['elapsed']}")
    names: tuple[str, ...] = (
        "train step",
        "success",
        "episodes",
        "staleness",
        "samples",
        "entropy",
        "trainer",
    )
    names += ("evaluated", "alarms")
    known = snapshot.progress.num_episodes and {
        name: shown[name] for name in names if not shown[name].startswith("-")
    }
    parts += [f"{name} {value}" for name, value in (known or {}).items()]
    parts += [f"workers {shown['workers']}"] if snapshot.service else []
    return " | ".join(parts + ([states] if states else []))


def panel(snapshot: Snapshot) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for _ in range(4):
        grid.add_column()
    shown = list(figures(snapshot).items())
    wide = [(name, value) for name, value in shown if name in WIDE]
    narrow = [item for item in shown if item not in wide]
    half = (len(narrow) + 1) // 2
    for left, right in zip(narrow[:half], [*narrow[half:], ("", "")], strict=False):
        grid.add_row(f"[dim]{left[0]}", left[1], f"[dim]{right[0]}", right[1])
    rest = Table.grid(padding=(0, 2))
    for name, value in wide:
        is_up = name == "alarms" and snapshot.progress.alarms
        rest.add_row(f"[dim]{name}", f"[red]{value}[/]" if is_up else value)
    rest.add_row("[dim]processes", _processes(snapshot))
    parts: list[RenderableType] = [grid, rest]
    if snapshot.progress.by_task:
        parts.append(task_table(snapshot.progress))
    title = f"[bold]{snapshot.run_id}[/]  {snapshot.phase} {snapshot.detail}".rstrip()
    return Panel(Group(*parts), title=title, title_align="left", box=box.ROUNDED)


def task_table(progress: Progress) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("task")
    table.add_column("success", justify="right")
    table.add_column("last", justify="right")
    table.add_column("")
    for task, (rate, count) in progress.success_by_task().items():
        bar = "#" * round(20 * rate)
        table.add_row(
            task, percent(rate), str(count), f"[green]{bar}[/][dim]{'.' * (20 - len(bar))}"
        )
    return table


def _processes(snapshot: Snapshot) -> str:
    return "  ".join(
        f"{process.name} [{_COLOURS.get(process.state, 'dim')}]{process.state}[/]"
        + (f" [yellow]({process.restarts} restarts)[/]" if process.restarts else "")
        for process in snapshot.processes
    )


class View:
    """A context that shows snapshots: live on a terminal, else a line every ten seconds."""

    def __init__(self, console: Console, *, now: Callable[[], float]) -> None:
        self._console = console
        self._now = now
        self._next_at = 0.0
        self._phase = ""
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, message: str) -> None:
        """One line that stays."""
        self._console.print(message, highlight=False, soft_wrap=True, markup=False)

    def show(self, snapshot: Snapshot) -> None:
        if self._live is not None:
            self._live.update(panel(snapshot), refresh=True)
            return
        if self._now() < self._next_at and snapshot.phase == self._phase:
            return
        self._phase = snapshot.phase
        self._next_at = self._now() + PLAIN_EVERY_S
        self.say(plain_line(snapshot))


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def text(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def clock_text(seconds: float) -> str:
    """
    >>> clock_text(75)
    '1:15'
    >>> clock_text(3675)
    '1:01:15'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
