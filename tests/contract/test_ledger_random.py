"""The real ledger under random schedules: lagging workers, failures, crashes, resumes.

Checked after every move: the staleness bound, that no trajectory is trained twice, and that no
episode vanishes. At the end everything must still be able to go on.
"""

import tempfile
from pathlib import Path

import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dart_gui.config import CurationConfig, DataConfig
from dart_gui.data import groups
from dart_gui.data.fakes import fake_trajectory
from dart_gui.data.manager import DataManager
from dart_gui.data.sampler import RoundRobinSampler
from dart_gui.data.schema import rollout_run
from dart_gui.data.staleness import feasible
from dart_gui.types import StopReason

MOVES = ["next"] * 5 + ["store"] * 5 + ["fail", "claim", "claim", "publish", "ack"]
MOVES += ["serve", "serve", "runner dies", "trainer dies"]
schedules = st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 999)), max_size=80)


class World:
    """A runner and a trainer, as far as the ledger can tell."""

    def __init__(self, folder: Path, *, max_staleness: int, groups_per_step: int) -> None:
        self.folder = folder
        self.max_staleness = max_staleness
        self.groups_per_step = groups_per_step
        self.running = []
        self.train_step = 0  # of the last claimed batch
        self.saved_step = 0  # of the last checkpoint
        self.published_step = 0
        self.served = 0
        self.num_back = 0  # batches that came back with a trainer's death
        self.manager = self.open()
        self.manager.publish_version(0, "/w/0")

    def open(self) -> DataManager:
        return DataManager(
            f"sqlite:///{self.folder}/ledger.sqlite",
            str(self.folder / "blobs"),
            run_id="r1",
            config=DataConfig(group_size=2, max_staleness=self.max_staleness),
            curation=CurationConfig(),
            groups_per_step=self.groups_per_step,
            sampler=RoundRobinSampler(["s/a", "s/b"], seed=5, train_seed=lambda rng: 1),
            max_attempts=2,
        )

    def move(self, name: str, pick: int) -> None:
        getattr(self, name.replace(" ", "_"))(pick)

    def next(self, pick: int) -> None:
        planned = self.manager.next_episode(self.served)
        if planned is not None:
            self.running.append(planned)

    def store(self, pick: int) -> None:
        if self.running:
            planned = self.running.pop(pick % len(self.running))
            reward = float(planned.episode_id.endswith("1")) if pick % 4 else 0.0
            trajectory, images = fake_trajectory(
                planned, run_id="r1", reward=reward, versions=(self.served,)
            )
            self.manager.store(trajectory, images)

    def fail(self, pick: int) -> None:
        if self.running:
            planned = self.running.pop(pick % len(self.running))
            self.manager.fail(planned, StopReason.ENV_ERROR, "scripted")

    def claim(self, pick: int) -> bool:
        batch = self.manager.claim_batch(self.train_step + 1)
        if batch is None:
            return False
        self.train_step += 1
        assert batch.staleness_max <= self.max_staleness + 2 * self.num_back
        assert len(batch.groups) == self.groups_per_step
        return True

    def publish(self, pick: int) -> None:
        if self.published_step < self.train_step:
            self.published_step += 1
            self.manager.publish_version(self.published_step, f"/w/{self.published_step}")

    def ack(self, pick: int) -> None:
        self.saved_step = self.published_step
        self.manager.acknowledge(self.saved_step, f"/c/{self.saved_step}")

    def serve(self, pick: int) -> None:
        self.served += pick % (self.manager.latest_version() - self.served + 1)

    def runner_dies(self, pick: int) -> None:
        assert self.manager.recover() == len(self.running)
        self.running = []

    def trainer_dies(self, pick: int) -> None:
        self.manager.close()
        self.manager = self.open()
        num_lost = self.train_step - self.saved_step
        self.num_back += num_lost
        num_groups = num_lost * self.groups_per_step
        assert self.manager.resume_from(self.saved_step) == num_groups
        self.train_step = self.published_step = self.saved_step
        self.manager.publish_version(self.saved_step, f"/c/{self.saved_step}")

    def check(self) -> None:
        counts = self.manager.counts()
        planned = 2 * sum(counts["groups"].values())
        assert sum(counts["episodes"].values()) == planned
        assert counts["episodes"]["running"] == len(self.running)
        with self.manager._ledger.reading() as conn:
            rungs = groups.ladder(conn, "r1")
            version = groups.trainer_version(conn, "r1")
            used = conn.execute(sa.select(rollout_run.c.used)).scalars().all()
        pacing = self.manager._batches.pacing
        assert feasible([rung.version for rung in rungs], version, pacing)
        assert set(used) <= {0, 1}
        assert sum(used) <= 2 * counts["groups"]["trained"]

    def go_on(self) -> None:
        """One round in which all that can end ends. Training must advance in a few of them."""
        while self.published_step < self.train_step:
            self.publish(0)
        self.served = self.manager.latest_version()
        self.next(0)
        for _ in range(100):
            if self.running:
                self.store(1)
                self.next(0)
        assert self.running == []


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2), st.integers(1, 3), schedules)
def test_random_schedules(max_staleness, groups_per_step, schedule):
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), max_staleness=max_staleness, groups_per_step=groups_per_step)
        for name, pick in schedule:
            world.move(name, pick)
            world.check()
        before = world.train_step
        for _ in range(4):
            world.go_on()
            while world.claim(0):
                pass
        world.check()
        stored = world.manager.counts()["episodes"]["stored"]
        assert stored == len(world.manager.trajectories())
        assert world.train_step >= before + 3
        world.manager.close()
