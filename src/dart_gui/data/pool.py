"""The experience pool: verified successes from elsewhere, in a folder of their own.

    index.jsonl    one line per entry: which task, and where it comes from
    blobs/         trajectories and screenshots, as in a run

Entries are foreign trajectories: tokenised once, when they were added, by the renderer of one agent, and
without behaviour log-probabilities. An entry serves a run whose agent renders alike and whose
environment and verifier are the same; where one of them changed it has expired. Blobs come before
their line, so an entry is there whole or not at all; any process may add at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from dart_gui.data.blobs import BlobStore, encode_trajectory
from dart_gui.errors import ConfigError, DataError
from dart_gui.types import Trajectory

INDEX = "index.jsonl"
Source = Literal["script", "run", "folder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What has to be equal for a success to count here."""

    env_version: str  # equal versions replay equally
    verifier_version: str
    renderer: str  # fingerprint of what turns messages into token ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where an entry comes from."""

    source: Source
    origin: str  # a run and trajectory id, a folder, a script
    conditions: Conditions
    policy_version: int | None  # of the policy that acted; None where it was no version of a run
    added_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEntry:
    """A line of the index."""

    entry_id: str
    task_id: str
    seed: int
    reward: float
    num_steps: int
    blob_sha256: str
    provenance: Provenance


def expired(entry: PoolEntry, now: Conditions) -> str | None:
    """What changed since the entry was made; None where it still counts."""
    made, current = asdict(entry.provenance.conditions), asdict(now)
    return next((name for name in current if made[name] != current[name]), None)


@dataclass(kw_only=True)
class ExperiencePool:
    """The pool in ``folder``.

    Raises:
        ConfigError: the folder is not a pool, and ``create`` is not set.
    """

    folder: Path
    create: bool = False
    _entries: list[PoolEntry] = field(default_factory=list, init=False)
    _read_to: int = field(default=0, init=False)  # bytes of the index

    def __post_init__(self) -> None:
        if not self.create and not (self.folder / INDEX).is_file():
            raise ConfigError(
                f"{self.folder} is not an experience pool: it has no {INDEX}. "
                f"`dart-gui pool add {self.folder} ...` makes one"
            )
        self.blobs = BlobStore(str((self.folder / "blobs").absolute()))

    def add(
        self, trajectory: Trajectory, images: Mapping[str, bytes], provenance: Provenance
    ) -> PoolEntry | None:
        """Store a success with its screenshots; None where the pool has it already.

        Raises:
            DataError: it is no success, it is not foreign, or a screenshot is missing.
        """
        _check(trajectory)
        data = encode_trajectory(trajectory)
        sha256 = hashlib.sha256(data).hexdigest()
        if any(entry.blob_sha256 == sha256 for entry in self.entries()):
            return None
        entry = PoolEntry(
            entry_id=sha256[:16],
            task_id=trajectory.task.task_id,
            seed=trajectory.task.seed,
            reward=trajectory.reward,
            num_steps=len(trajectory.steps),
            blob_sha256=sha256,
            provenance=provenance,
        )
        named = {name for step in trajectory.steps for name in step.completion.image_hashes}
        self.blobs.put_images(images)
        self.blobs.require_images(named - set(images))
        self.blobs.put_trajectory(entry.entry_id, data)
        _append(self.folder / INDEX, json.dumps(asdict(entry)))
        return entry

    def entries(self) -> list[PoolEntry]:
        """All entries, in the order of adding; those that others have added since, too.

        Raises:
            DataError: a line is not an entry of this version.
        """
        index = self.folder / INDEX
        if index.exists() and index.stat().st_size > self._read_to:
            with index.open("rb") as lines:
                lines.seek(self._read_to)
                fresh = lines.read()
            whole = fresh[: fresh.rfind(b"\n") + 1]  # another process may be in mid-line
            self._entries += [_entry(line, index) for line in whole.splitlines()]
            self._read_to += len(whole)
        return list(self._entries)

    def load(self, entry_id: str, sha256: str) -> Trajectory:
        """Raises ``DataError`` where it is missing or damaged."""
        return self.blobs.trajectory(entry_id, sha256)


def _check(trajectory: Trajectory) -> None:
    if not trajectory.success:
        raise DataError(
            f"{trajectory.trajectory_id} has reward {trajectory.reward:g} and is no success: a pool "
            "holds successes that were verified"
        )
    if not all(step.completion.foreign for step in trajectory.steps):
        raise DataError(f"{trajectory.trajectory_id} is not marked as foreign")


def _entry(line: bytes, index: Path) -> PoolEntry:
    try:
        tree = json.loads(line)
        made = tree.pop("provenance")
        conditions = Conditions(**made.pop("conditions"))
        return PoolEntry(**tree, provenance=Provenance(**made, conditions=conditions))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{index} has a line that is no pool entry: {error}") from error


def _append(path: Path, line: str) -> None:
    """One ``write`` on an ``O_APPEND`` descriptor: lines of several processes do not mix."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
