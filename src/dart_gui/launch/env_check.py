"""``dart-gui env check SUITE``: does a suite keep the promises of an environment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dart_gui.config import EnvConfig
from dart_gui.env.contract import Verdict, check_suite
from dart_gui.env.suites import Suite, get_suite


def run_check(
    console: Console, config: EnvConfig, task_names: Sequence[str], *, use_all: bool, seed: int
) -> int:
    """Check the suite of ``config``; 0 where every promise is kept, else 1."""
    suite = get_suite(config.suite)
    task_ids = choose_tasks(suite, task_names, use_all=use_all)
    console.print(
        f"suite {suite.name}, version {suite.env_version}: {len(task_ids)} of "
        f"{len(suite.task_ids)} tasks, on {suite.check_machine(config)}",
        highlight=False,
        soft_wrap=True,
    )
    verdicts = asyncio.run(_check(console, check_suite(suite, config, task_ids, seed=seed)))
    failed = [verdict for verdict in verdicts if not verdict.ok]
    if failed:
        broken = sorted({verdict.task_id or "the cluster" for verdict in failed})
        console.print(
            f"[bold red]{len(failed)} of {len(verdicts)} checks failed[/]: {', '.join(broken)}",
            highlight=False,
        )
        return 1
    console.print(f"[green]all {len(verdicts)} checks passed[/]", highlight=False)
    return 0


def choose_tasks(suite: Suite, names: Sequence[str], *, use_all: bool) -> tuple[str, ...]:
    """Raises ``ConfigError`` for an unknown task."""
    if names:
        full = (name if "/" in name else f"{suite.name}/{name}" for name in names)
        return tuple(suite.check(name) for name in full)
    return suite.task_ids if use_all else suite.default_tasks


async def _check(console: Console, verdicts: AsyncIterator[Verdict]) -> list[Verdict]:
    """Shows the verdicts of a task when it has them all."""
    done: list[Verdict] = []
    pending: list[Verdict] = []
    async with aclosing(verdicts):  # type: ignore[type-var]
        async for verdict in verdicts:
            if pending and pending[0].task_id != verdict.task_id:
                console.print(table(pending))
                pending = []
            pending.append(verdict)
            done.append(verdict)
    console.print(table(pending))
    return done


def table(verdicts: Sequence[Verdict]) -> Table:
    title = verdicts[0].task_id or "the cluster"
    result = Table(box=None, padding=(0, 1), title=escape(title), title_justify="left")
    for column in ("check", "", "found"):
        result.add_column(column, overflow="fold")
    for verdict in verdicts:
        mark = "[green]ok[/]" if verdict.ok else "[bold red]FAIL[/]"
        result.add_row(verdict.check, mark, escape(verdict.text))
    return result
