"""``dart-gui db check``: what is wrong with a run's data, one line a finding. Reads only.

It may look at a run that goes on: rows are of one moment, what is in flight is no finding but is
named, and files that training replaces are looked up again before they are called missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console

from dart_gui import metrics
from dart_gui.config import Config
from dart_gui.data.audit import Audit, Finding, Snapshot
from dart_gui.data.states import BatchState, EpisodeState, GroupState
from dart_gui.launch.run_folder import RunFolder
from dart_gui.train.checkpoint_files import checkpoint_problems, weights_problems

CLEAN = 0
FINDINGS = 1
CANNOT_CHECK = 2


def run(console: Console, folder: RunFolder, config: Config, *, fast: bool) -> int:
    """Print the findings and the exit code that says whether there are any.

    Raises:
        DartError: the run cannot be checked: no ledger, an unreadable one, a configuration that is
            none.
    """
    # What was reported before the rows are read must be among them.
    reported = Reported(folder)
    audit = Audit(folder.path, config)
    try:
        rows = audit.snapshot()
        findings = [
            *audit.check_ledger(rows),
            *reported.check(rows),
            *_newest_files(audit, rows, fast=fast),
            *audit.check_blobs(rows, fast=fast),
        ]
    finally:
        audit.close()
    for finding in findings:
        console.print(finding.text, highlight=False, markup=False, soft_wrap=True)
    for line in [*_in_flight(rows), _verdict(rows, findings, fast=fast)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return FINDINGS if findings else CLEAN


class Reported:
    """What the processes said in ``metrics.jsonl`` that they had done."""

    def __init__(self, folder: RunFolder) -> None:
        self._stored: set[str] = set()
        self._published: dict[int, int] = {}  # policy version -> train step
        for event in metrics.read(folder.metrics):
            if event.get("event") == "episode":
                self._stored.add(str(event.get("trajectory_id")))
            elif event.get("event") == "train_step":
                self._published[int(event["policy_version"])] = int(event["train_step"])

    def check(self, rows: Snapshot) -> Iterator[Finding]:
        for trajectory_id in sorted(self._stored - rows.trajectories.keys()):
            yield Finding(
                f"trajectory {trajectory_id} was reported as stored (metrics.jsonl), but the ledger "
                "does not have it: restore the ledger from a backup, or go on without it"
            )
        for version, train_step in sorted(self._published.items()):
            row = rows.versions.get(version)
            if row is None or row.train_step != train_step:
                found = "no such version" if row is None else f"train step {row.train_step}"
                yield Finding(
                    f"policy version {version} was reported as the outcome of train step "
                    f"{train_step} (metrics.jsonl), the ledger has {found}: the two are of "
                    "different runs, or the ledger was put back to an older one"
                )


def _newest_files(audit: Audit, rows: Snapshot, *, fast: bool) -> Iterator[Finding]:
    """The checkpoint to resume from and the weights to serve are on disk and whole."""
    problems = list(_file_problems(rows, fast=fast))
    if problems:  # newer ones may have taken their place since the rows were read
        now = audit.snapshot()
        if _newest(now) != _newest(rows):
            problems = list(_file_problems(now, fast=fast))
    yield from problems


def _newest(rows: Snapshot) -> tuple[int, int]:
    return rows.latest_train_step, rows.latest_version


def _file_problems(rows: Snapshot, *, fast: bool) -> Iterator[Finding]:
    for row in rows.checkpoints[-1:]:
        for problem in checkpoint_problems(Path(row.path), row.train_step, fast=fast):
            yield Finding(
                f"the newest durable checkpoint, of train step {row.train_step}: {problem}. The "
                "run cannot be resumed without it: restore the folder from a backup, or start a "
                "new run with model.path at an older one"
            )
    if rows.versions:
        row = rows.versions[rows.latest_version]
        for problem in weights_problems(Path(row.path)):
            yield Finding(
                f"the newest published weights, policy version {row.version}: {problem}. A trainer "
                "that starts publishes its own: `dart-gui train --resume`"
            )


def _in_flight(rows: Snapshot) -> Iterator[str]:
    """What is neither done nor lost, and who takes it from here."""
    episodes, groups = rows.episodes.values(), rows.groups.values()
    num_open = rows.count(groups, GroupState.OPEN)
    if num_open:
        yield (
            f"in flight: {num_open} open groups, with "
            f"{rows.count(episodes, EpisodeState.RUNNING)} episodes running (a runner that starts "
            f"takes over those of one that died) and "
            f"{rows.count(episodes, EpisodeState.PLANNED)} planned"
        )
    if num_complete := rows.count(groups, GroupState.COMPLETE):
        yield f"in flight: {num_complete} complete groups wait for the trainer"
    for row in rows.batches.values():
        if row.state in (BatchState.CLAIMED, BatchState.PUBLISHED):
            yield (
                f"in flight: the batch of train step {row.train_step} is {row.state}; the next "
                "durable checkpoint acknowledges it, or a trainer that starts trains it again"
            )


def _verdict(rows: Snapshot, findings: Iterable[Finding], *, fast: bool) -> str:
    num_findings = len(list(findings))
    what = "no finding" if num_findings == 0 else f"{num_findings} findings"
    how = "; blobs not read (--fast)" if fast else ""
    trained = rows.count(rows.groups.values(), GroupState.TRAINED)
    return (
        f"run {rows.run_id}: {what} in {len(rows.trajectories)} trajectories, {len(rows.groups)} "
        f"groups ({trained} trained), {len(rows.batches)} batches, {len(rows.versions)} policy "
        f"versions, {len(rows.checkpoints)} durable checkpoints{how}"
    )
