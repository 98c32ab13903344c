"""What must hold between the rows of a run: pure rules over a :class:`Snapshot`.

Rows in flight break no rule: open groups, episodes planned or running, batches that no durable
checkpoint lists yet. Each rule holds between any two transactions, so at any moment of a run.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dart_gui.data import staleness
from dart_gui.data.staleness import Pacing
from dart_gui.data.states import BatchState, EpisodeState, GroupState
from dart_gui.types import StopReason

DEFECT = (
    "Nothing that dart-gui does leaves this behind: stop the run, restore the ledger from a "
    "backup, or start a new run, and report it with this line"
)
BACKUP = "Restore it from a backup, or start a new run"

_WAITING = (EpisodeState.PLANNED, EpisodeState.RUNNING)
_IN_BATCH = {
    GroupState.CLAIMED: (BatchState.CLAIMED, BatchState.PUBLISHED),
    GroupState.TRAINED: (BatchState.ACKNOWLEDGED,),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong and what to do about it, in a line."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    max_uses: int
    pacing: Pacing


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The rows of one run at one moment, under their keys."""

    run_id: str
    groups: Mapping[str, Any]
    episodes: Mapping[str, Any]
    failures: Sequence[Any]
    trajectories: Mapping[str, Any]
    batches: Mapping[int, Any]
    versions: Mapping[int, Any]
    checkpoints: Sequence[Any]  # durable ones, by train step
    rollouts: Sequence[Any]  # of the published table rollout_run
    published: Sequence[Any]  # of the published table checkpoint

    @property
    def latest_version(self) -> int:
        """0 before the initial weights are published, whose version that will be."""
        return max(self.versions, default=0)

    @property
    def latest_train_step(self) -> int:
        """Of the newest durable checkpoint; 0 without one."""
        return max((row.train_step for row in self.checkpoints), default=0)

    def count(self, rows: Iterable[Any], state: StrEnum) -> int:
        return sum(row.state == state for row in rows)


def check_rows(rows: Snapshot, limits: Limits) -> Iterator[Finding]:
    yield from _known_states(rows)
    yield from _groups(rows)
    yield from _episodes(rows)
    yield from _trajectories(rows)
    yield from _staleness(rows, limits.pacing)
    yield from _ladder(rows, limits.pacing)
    yield from _batches(rows)
    yield from _train_steps(rows)
    yield from _versions(rows)
    yield from _checkpoints(rows)
    yield from _rollout_run(rows, limits.max_uses)
    yield from _checkpoint_table(rows)


def _defect(text: str) -> Finding:
    return Finding(f"{text}. {DEFECT}")


def _known_states(rows: Snapshot) -> Iterator[Finding]:
    machines: list[tuple[str, Mapping[Any, Any], type[StrEnum]]] = [
        ("group", rows.groups, GroupState),
        ("episode", rows.episodes, EpisodeState),
        ("batch", rows.batches, BatchState),
    ]
    for what, table, states in machines:
        for key, row in table.items():
            if row.state not in list(states):
                yield _defect(f"{what} {key} is in the state {row.state!r}, which there is not")


# --- groups and episodes -----------------------------------------------------------------------


def _groups(rows: Snapshot) -> Iterator[Finding]:
    members: dict[str, list[Any]] = defaultdict(list)
    for episode in rows.episodes.values():
        members[episode.group_id].append(episode)
    for group_id, group in rows.groups.items():
        yield from _members(group, members[group_id])
        yield from _group_state(group, members[group_id])
        yield from _group_batch(group, rows.batches)
    for group_id in members.keys() - rows.groups.keys():
        yield _defect(f"episodes of group {group_id} are planned, but there is no such group")


def _members(group: Any, members: list[Any]) -> Iterator[Finding]:
    numbers = sorted(episode.member for episode in members)
    if numbers != list(range(group.size)):
        yield _defect(
            f"group {group.group_id} of size {group.size} has the members {numbers}, expected "
            f"0 to {group.size - 1}"
        )


def _group_state(group: Any, members: list[Any]) -> Iterator[Finding]:
    num_waiting = sum(episode.state in _WAITING for episode in members)
    num_stored = sum(episode.state == EpisodeState.STORED for episode in members)
    is_open = group.state == GroupState.OPEN
    what = f"group {group.group_id} is {group.state}"
    if is_open and not num_waiting:
        yield _defect(f"{what}, but none of its {len(members)} episodes is left to run")
    if not is_open and num_waiting:
        yield _defect(f"{what}, but {num_waiting} of its episodes are still planned or running")
    if is_open != (group.closed_at is None):
        yield _defect(f"{what}, and closed_at is {group.closed_at}")
    if (group.state in (GroupState.SKIPPED, GroupState.CANCELLED)) != bool(group.reason):
        yield _defect(f"{what} with the reason {group.reason!r}")
    lost_half = 2 * num_stored < group.size
    if not is_open and lost_half != (group.state == GroupState.CANCELLED):
        yield _defect(f"{what} with {num_stored} of {group.size} members stored")


def _group_batch(group: Any, batches: Mapping[int, Any]) -> Iterator[Finding]:
    wanted = _IN_BATCH.get(group.state)
    what = f"group {group.group_id} is {group.state}"
    if wanted is None:
        if group.batch_id is not None:
            yield _defect(f"{what}, yet belongs to batch {group.batch_id}")
        return
    batch = batches.get(group.batch_id)
    if batch is None:
        yield _defect(f"{what} in batch {group.batch_id}, which there is not")
    elif batch.state not in wanted:
        yield _defect(f"{what}, but its batch {batch.id} is {batch.state}")


def _episodes(rows: Snapshot) -> Iterator[Finding]:
    failed = {(row.episode_id, row.attempt) for row in rows.failures}
    stored = {row.episode_id for row in rows.trajectories.values()}
    for episode_id, episode in rows.episodes.items():
        if episode.state == EpisodeState.STORED and episode_id not in stored:
            yield _defect(f"episode {episode_id} is stored, but has no trajectory: it is lost")
        if episode.state == EpisodeState.CANCELLED:
            if not episode.reason:
                yield _defect(f"episode {episode_id} is cancelled without a reason")
            if (episode_id, episode.attempt) not in failed:
                yield _defect(
                    f"episode {episode_id} is cancelled, but its last attempt "
                    f"({episode.attempt}) has no recorded failure"
                )
    for row in rows.failures:
        if row.episode_id not in rows.episodes:
            yield _defect(f"failure {row.id} is of episode {row.episode_id}, which there is not")


# --- trajectories ------------------------------------------------------------------------------


def _trajectories(rows: Snapshot) -> Iterator[Finding]:
    for trajectory_id, row in rows.trajectories.items():
        episode, group = rows.episodes.get(row.episode_id), rows.groups.get(row.group_id)
        what = f"trajectory {trajectory_id}"
        if episode is None or group is None:
            missing = f"episode {row.episode_id}" if episode is None else f"group {row.group_id}"
            yield _defect(f"{what} is of {missing}, which there is not")
            continue
        if episode.state != EpisodeState.STORED:
            yield _defect(f"{what} is stored, but its episode is {episode.state}")
        planned = (episode.group_id, group.task_id, group.seed, episode.attempt)
        got = (row.group_id, row.task_id, row.seed, row.attempt)
        if got != planned:
            yield _defect(f"{what} is of (group, task, seed, attempt) {got}, planned was {planned}")
        yield from _outcome(what, row)
        yield from _trajectory_versions(what, row, group, rows.versions)


def _outcome(what: str, row: Any) -> Iterator[Finding]:
    if not (math.isfinite(row.reward) and 0.0 <= row.reward <= 1.0):
        yield _defect(f"{what} has the reward {row.reward}, expected a number in [0, 1]")
    reasons = [reason for reason in StopReason if not reason.is_infrastructure]
    if row.stop_reason not in reasons:
        yield _defect(f"{what} ended by {row.stop_reason!r}, which gives no trajectory")
    if row.num_steps < 1 or row.num_response_tokens < row.num_steps:
        yield _defect(
            f"{what} has {row.num_steps} steps with {row.num_response_tokens} response tokens"
        )


def _trajectory_versions(
    what: str, row: Any, group: Any, versions: Mapping[int, Any]
) -> Iterator[Finding]:
    if not 0 <= row.version_min <= row.version_max:
        yield _defect(f"{what} has policy versions {row.version_min} to {row.version_max}")
    # A group that is to be trained takes the place of its oldest step; see groups.close_if_done.
    is_placed = group.state in (GroupState.COMPLETE, *_IN_BATCH)
    if is_placed and row.version_min < group.planned_version:
        yield _defect(
            f"{what} has a step of policy version {row.version_min}, its group counts as planned "
            f"at {group.planned_version}"
        )
    # The runner may be up before the trainer, which publishes the initial weights as version 0.
    is_initial = not versions and row.version_max == 0
    if row.version_max not in versions and not is_initial:
        yield _defect(f"{what} is of policy version {row.version_max}, which was never published")


# --- staleness ---------------------------------------------------------------------------------


def _staleness(rows: Snapshot, pacing: Pacing) -> Iterator[Finding]:
    """Of what was consumed, worked out again from the versions that were published by then."""
    ages: dict[int, int] = {}  # in train steps, as reported
    places: dict[int, int] = {}  # on the ladder, which is what the bound holds for
    for row in rows.trajectories.values():
        group = rows.groups.get(row.group_id)
        batch = rows.batches.get(group.batch_id) if group is not None else None
        if group is None or batch is None:
            continue
        steps = {
            version: published.train_step
            for version, published in rows.versions.items()
            if row.version_min <= version <= batch.trainer_version
        }
        age = staleness.distance(steps, row.version_min, batch.train_step - 1)
        place = batch.trainer_version - row.version_min - group.version_shift
        ages[batch.id] = max(age, ages.get(batch.id, 0))
        places[batch.id] = max(place, places.get(batch.id, 0))
    for batch_id, age in ages.items():
        batch = rows.batches[batch_id]
        what = f"batch {batch_id} of train step {batch.train_step}"
        if age != batch.staleness_max:
            yield _defect(f"{what} says staleness_max {batch.staleness_max}, its rows give {age}")
        if places[batch_id] > pacing.max_staleness:
            yield Finding(
                f"{what} was trained at staleness {places[batch_id]}, data.max_staleness is "
                f"{pacing.max_staleness}. If that was lowered since then, all is well; else {DEFECT}"
            )


def _ladder(rows: Snapshot, pacing: Pacing) -> Iterator[Finding]:
    in_system = (GroupState.OPEN, GroupState.COMPLETE)
    versions = [
        group.planned_version + group.version_shift
        for group in rows.groups.values()
        if group.state in in_system
    ]
    num_unpublished = sum(
        row.policy_version is None and row.state != BatchState.RETURNED
        for row in rows.batches.values()
    )
    version = rows.latest_version + num_unpublished
    if not staleness.feasible(versions, version, pacing):
        yield Finding(
            f"the {len(versions)} groups in the system, planned at {sorted(versions)}, cannot all "
            f"be trained within data.max_staleness {pacing.max_staleness} from trainer version "
            f"{version} on. Stop the run and continue it with `dart-gui train --resume`, which "
            "mends this"
        )


# --- batches, versions, checkpoints ------------------------------------------------------------


def _batches(rows: Snapshot) -> Iterator[Finding]:
    groups, trajectories = Counter[int](), Counter[int]()
    for group in rows.groups.values():
        groups[group.batch_id] += 1
    for row in rows.trajectories.values():
        if row.group_id in rows.groups:
            trajectories[rows.groups[row.group_id].batch_id] += 1
    for batch_id, batch in rows.batches.items():
        what = f"batch {batch_id} of train step {batch.train_step} is {batch.state}"
        returned = batch.state == BatchState.RETURNED
        wanted = (0, 0) if returned else (batch.num_groups, batch.num_trajectories)
        got = (groups[batch_id], trajectories[batch_id])
        if got != wanted:
            yield _defect(f"{what} with (groups, trajectories) {got}, expected {wanted}")
        is_closed = batch.state in (BatchState.ACKNOWLEDGED, BatchState.RETURNED)
        if is_closed != (batch.closed_at is not None):
            yield _defect(f"{what}, and closed_at is {batch.closed_at}")
        if (batch.state == BatchState.PUBLISHED) and batch.policy_version is None:
            yield _defect(f"{what}, but names no policy version")
        if batch.policy_version is not None and batch.policy_version not in rows.versions:
            yield _defect(f"{what} at policy version {batch.policy_version}, which there is not")


def _train_steps(rows: Snapshot) -> Iterator[Finding]:
    """Each train step has one batch that counts, and the checkpoints acknowledge all up to theirs."""
    kept = [row for row in rows.batches.values() if row.state != BatchState.RETURNED]
    for train_step, number in Counter(row.train_step for row in kept).items():
        if number > 1:
            yield _defect(f"train step {train_step} has {number} batches that were not returned")
    for batch in kept:
        acknowledged = batch.state == BatchState.ACKNOWLEDGED
        if acknowledged != (batch.train_step <= rows.latest_train_step):
            yield _defect(
                f"the batch of train step {batch.train_step} is {batch.state}, while the newest "
                f"durable checkpoint is of train step {rows.latest_train_step}"
            )


def _versions(rows: Snapshot) -> Iterator[Finding]:
    missing = (
        sorted(set(range(rows.latest_version)) - rows.versions.keys()) if rows.versions else []
    )
    if missing:
        yield _defect(f"the policy versions {missing} are missing below {rows.latest_version}")


def _checkpoints(rows: Snapshot) -> Iterator[Finding]:
    for row in rows.checkpoints:
        if row.policy_version is not None and row.policy_version not in rows.versions:
            yield _defect(
                f"the durable checkpoint of train step {row.train_step} is of policy version "
                f"{row.policy_version}, which there is not"
            )


# --- the published tables ----------------------------------------------------------------------


def _rollout_run(rows: Snapshot, max_uses: int) -> Iterator[Finding]:
    by_id = {row.trajectory_id: row for row in rows.rollouts}
    for trajectory_id in rows.trajectories.keys() - by_id.keys():
        yield _defect(f"trajectory {trajectory_id} has no row in rollout_run")
    for trajectory_id, row in by_id.items():
        ours = rows.trajectories.get(trajectory_id)
        if ours is None:
            yield _defect(f"rollout_run has the trajectory {trajectory_id}, which is not stored")
            continue
        if row.used > max_uses:
            yield _defect(f"trajectory {trajectory_id} was trained {row.used} times, not once")
        version = rows.versions.get(ours.version_max)
        group = rows.groups.get(ours.group_id)
        facts = {
            "task_id": ours.task_id,
            "reward": ours.reward,
            "num_chunks": ours.num_steps,
            "model_version": version.path if version is not None else None,
            "used": int(group is not None and group.state == GroupState.TRAINED),
        }
        for name, value in facts.items():
            if row._mapping[name] != value:
                yield _defect(
                    f"trajectory {trajectory_id}: {name} is {row._mapping[name]} in rollout_run, "
                    f"our tables give {value}"
                )


def _checkpoint_table(rows: Snapshot) -> Iterator[Finding]:
    ours = Counter((f"v{version}", row.path) for version, row in rows.versions.items())
    published = Counter((row.version, row.path) for row in rows.published)
    for name, path in ours - published:
        yield _defect(f"the weights {name} at {path} have no row in the table checkpoint")
    for name, path in published - ours:
        yield _defect(f"the table checkpoint has {name} at {path}, which we did not publish")
