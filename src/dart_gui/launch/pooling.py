"""``dart-gui pool`` and ``dart-gui sft``: fill an experience pool, list it, imitate it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dart_gui.agent.agent import Agent
from dart_gui.agent.fingerprint import renderer_fingerprint
from dart_gui.config import Config
from dart_gui.data.manager import DataManager
from dart_gui.data.pool import (
    Conditions,
    ExperiencePool,
    PoolEntry,
    Provenance,
    Source,
    expired,
)
from dart_gui.errors import ConfigError
from dart_gui.launch import preflight, run_folder
from dart_gui.launch.run_folder import RunFolder
from dart_gui.runner.main import run_conditions
from dart_gui.types import Trajectory


class Filler:
    """Adds trajectories to one pool and counts what became of them."""

    def __init__(self, pool: ExperiencePool, config: Config, conditions: Conditions) -> None:
        self._pool = pool
        self._max_context = config.rollout.max_context
        self._conditions = conditions
        self.counts: Counter[str] = Counter()

    def add(
        self,
        trajectory: Trajectory,
        images: dict[str, bytes],
        *,
        source: Source,
        origin: str,
        policy_version: int | None,
    ) -> None:
        from dart_gui.train.foreign import longest

        if longest([trajectory]) > self._max_context:
            self.counts["too long for rollout.max_context"] += 1
            return
        provenance = Provenance(
            source=source,
            origin=origin,
            conditions=self._conditions,
            policy_version=policy_version,
            added_at=time.time(),
        )
        entry = self._pool.add(trajectory, images, provenance)
        self.counts["added" if entry else "in the pool already"] += 1

    def summary(self) -> str:
        return ", ".join(f"{number} {what}" for what, number in self.counts.items()) or "no success"


def add_scripted(console: Console, folder: str, config: Config, num_per_task: int) -> int:
    """Scripted solutions of the configuration's tasks, ``num_per_task`` training instances each."""
    from dart_gui.launch.pool_sources import scripted
    from dart_gui.model.policy_model import PromptRenderer
    from dart_gui.train.foreign import foreign_trajectory

    tasks = list(preflight.check_tasks(config))
    model = Path(config.model.path)
    agent, renderer = Agent(model, config.agent), PromptRenderer(model)
    filler = Filler(
        ExperiencePool(folder=Path(folder), create=True), config, run_conditions(config)
    )

    async def fill() -> None:
        episodes = scripted(config, agent, tasks, num_per_task=num_per_task, seed=config.run.seed)
        async for episode in episodes:
            task = episode.task
            name = f"script-{task.task_id.replace('/', '-')}-{task.seed}"
            filler.add(
                foreign_trajectory(renderer, episode, name),
                episode.images,
                source="script",
                origin=name,
                policy_version=None,
            )

    asyncio.run(fill())
    console.print(f"{folder}: {filler.summary()}", highlight=False)
    return 0


def add_run(console: Console, folder: str, config: Config, run: str) -> int:
    """The successes of another run, or of an earlier one.

    Raises:
        ConfigError: its model sees screenshots otherwise than ours, or its environment is another.
    """
    source = run_folder.find(run, config.run.dir)
    theirs = source.load_config()
    same = _check_alike(config, theirs, source)
    filler = Filler(
        ExperiencePool(folder=Path(folder), create=True), config, run_conditions(config)
    )
    with DataManager.open(source.path, theirs) as data:
        now = run_conditions(config).env_version
        for facts in data.trajectories(success=True):
            if facts.env_version != now:
                filler.counts["of another or unknown environment version"] += 1
                continue
            trajectory, images = _foreign(data, config, facts.trajectory_id, same=same)
            name = f"{source.run_id}-{facts.trajectory_id}"
            filler.add(
                replace(trajectory, trajectory_id=name),
                images,
                source="run",
                origin=f"{source.run_id}/{facts.trajectory_id}",
                policy_version=facts.version_max,
            )
    console.print(f"{folder}: {filler.summary()}", highlight=False)
    return 0


def _check_alike(config: Config, theirs: Config, source: RunFolder) -> bool:
    """Whether the run's agent renders as ours does; where not, its screenshots must at least."""
    from dart_gui.agent.transforms import load_transform

    ours, other = Path(config.model.path), Path(theirs.model.path)
    if load_transform(ours) is not load_transform(other):
        raise ConfigError(
            f"the model of {source.run_id} was shown screenshots with another transform than "
            f"{config.model.path} (dart_agent.json): they cannot be shown to it"
        )
    prints = renderer_fingerprint(ours, config.agent), renderer_fingerprint(other, theirs.agent)
    return prints[0] == prints[1]


def _foreign(
    data: DataManager, config: Config, trajectory_id: str, *, same: bool
) -> tuple[Trajectory, dict[str, bytes]]:
    from dart_gui.launch.pool_sources import rendered_again
    from dart_gui.model.policy_model import PromptRenderer
    from dart_gui.train.foreign import as_foreign, foreign_trajectory

    trajectory = data.load_trajectory(trajectory_id)
    if same:
        named = {name for step in trajectory.steps for name in step.completion.image_hashes}
        return as_foreign(trajectory), data.load_images(named)
    model = Path(config.model.path)
    episode = rendered_again(data, Agent(model, config.agent), trajectory)
    return foreign_trajectory(PromptRenderer(model), episode, trajectory_id), episode.images


def add_published(
    console: Console, folder: str, config: Config, root: str, env_version: str
) -> int:
    """Trajectory folders of the published system. What environment they were made in is not written
    in them, so ``env_version`` says it; by default that of the configuration."""
    from dart_gui.launch.pool_sources import published, published_folders
    from dart_gui.model.policy_model import PromptRenderer
    from dart_gui.train.foreign import foreign_trajectory

    model = Path(config.model.path)
    agent, renderer = Agent(model, config.agent), PromptRenderer(model)
    conditions = run_conditions(config)
    if env_version:
        conditions = replace(conditions, env_version=env_version, verifier_version=env_version)
    filler = Filler(ExperiencePool(folder=Path(folder), create=True), config, conditions)
    for place in published_folders(Path(root)):
        episode = published(place, agent)
        if episode is None:
            filler.counts["no success"] += 1
            continue
        trajectory = foreign_trajectory(renderer, episode, place.name)
        filler.add(
            trajectory,
            episode.images,
            source="folder",
            origin=str(place.absolute()),
            policy_version=None,
        )
    console.print(f"{folder}: {filler.summary()}", highlight=False)
    return 0


def list_pool(console: Console, folder: str, config: Config) -> int:
    """Entries per task and source, and how many of them count under the configuration."""
    now = run_conditions(config)
    table = Table(box=SIMPLE_HEAD)
    for title in ("task", "source", "entries", "steps", "expired"):
        table.add_column(title, justify="left" if title in ("task", "source") else "right")
    rows: dict[tuple[str, str], list[PoolEntry]] = {}
    for entry in ExperiencePool(folder=Path(folder)).entries():
        rows.setdefault((entry.task_id, entry.provenance.source), []).append(entry)
    for (task_id, source), entries in sorted(rows.items()):
        steps = sorted(entry.num_steps for entry in entries)
        changed = Counter(filter(None, (expired(entry, now) for entry in entries)))
        shown = ", ".join(f"{number} ({what})" for what, number in changed.items())
        span = f"{steps[0]}-{steps[-1]}"
        table.add_row(task_id, source, str(len(entries)), span, shown or "0")
    console.print(table)
    return 0


def sft(console: Console, folder: str, out: str, config: Config, *, steps: int, batch: int) -> int:
    """Imitate the pool's successes that count under the configuration; a model folder at ``out``.

    Raises:
        ConfigError: there is something at ``out``, or no entry counts.
    """
    from dart_gui.train.checkpoint import save_model
    from dart_gui.train.main import build_trainer
    from dart_gui.train.sft import imitate

    if Path(out).exists():
        raise ConfigError(f"{out} exists already: choose a new folder for the model")
    pool, now = ExperiencePool(folder=Path(folder)), run_conditions(config)
    entries = [entry for entry in pool.entries() if expired(entry, now) is None]
    if not entries:
        raise ConfigError(
            f"no entry of {folder} counts for {config.model.path} in this environment; "
            f"`dart-gui pool list {folder}` says what changed"
        )
    trainer = build_trainer(config, pool.blobs.image)

    def report(number: int, measured: dict[str, Any]) -> None:
        if number % 10 == 0 or number in (1, steps):
            loss, seconds = measured["loss"], measured["step_s"]
            console.print(f"step {number}: {loss:.4f} nats per token, {seconds:.2f} s")

    imitate(
        trainer,
        _loaded(pool, entries),
        num_steps=steps,
        batch_size=batch,
        seed=config.run.seed,
        report=report,
    )
    save_model(trainer.policy, Path(out))
    console.print(f"imitated {len(entries)} successes; model: {out}", highlight=False)
    return 0


def _loaded(pool: ExperiencePool, entries: Iterable[PoolEntry]) -> list[Trajectory]:
    return [pool.load(entry.entry_id, entry.blob_sha256) for entry in entries]
