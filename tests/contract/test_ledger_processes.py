"""Runner and trainer as processes of their own over one ledger, and what a kill leaves behind."""

import multiprocessing
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from dart_gui.config import CurationConfig, DataConfig
from dart_gui.data.batches import BatchBook
from dart_gui.data.episodes import EpisodeBook
from dart_gui.data.fakes import fake_trajectory
from dart_gui.data.manager import DataManager
from dart_gui.data.sampler import RoundRobinSampler

SPAWN = multiprocessing.get_context("spawn")
NUM_STEPS = 6


def open_manager(folder: Path) -> DataManager:
    return DataManager(
        f"sqlite:///{folder}/ledger.sqlite",
        str(folder / "blobs"),
        run_id="r1",
        config=DataConfig(group_size=2, max_staleness=1),
        curation=CurationConfig(),
        groups_per_step=2,
        sampler=RoundRobinSampler(["s/a", "s/b"], seed=5, train_seed=lambda rng: 1),
    )


def run_once(manager: DataManager) -> bool:
    """One episode at the latest version."""
    version = manager.latest_version()
    planned = None if version is None else manager.next_episode(version)
    if planned is None:
        return False
    reward = float(planned.episode_id.endswith("1"))
    trajectory, images = fake_trajectory(planned, run_id="r1", reward=reward, versions=(version,))
    manager.store(trajectory, images)
    return True


def train_once(manager: DataManager, step: int) -> bool:
    if manager.claim_batch(step) is None:
        return False
    manager.publish_version(step, f"/weights/{step}")
    return True


def runner_process(folder, go, stop):
    with open_manager(folder) as manager:
        manager.recover()
        go.wait()
        while not stop.is_set():
            run_once(manager) or stop.wait(0.01)


def trainer_process(folder, go, stop):
    with open_manager(folder) as manager:
        checkpoint = manager.latest_checkpoint()
        step = checkpoint.train_step if checkpoint else 0
        manager.resume_from(step)
        manager.publish_version(step, f"/weights/from-{step}")
        go.wait()
        while step < NUM_STEPS:
            if not train_once(manager, step + 1):
                stop.wait(0.01)
                continue
            step += 1
            if step % 2 == 0:
                manager.acknowledge(step, f"/ckpt/{step}", manager.latest_version())
    stop.set()


def crash_process(folder, point):
    """A trainer and runner in one, killed at ``point``."""

    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    manager = open_manager(folder)
    manager.publish_version(0, "/weights/0")
    while run_once(manager):
        pass
    if point == "after the blobs":
        EpisodeBook.store = die
        manager.claim_batch(1)
        manager.publish_version(1, "/weights/1")
        run_once(manager)
    manager.claim_batch(1)
    if point == "within a transaction":
        BatchBook._mark_published = die
    elif point == "after the claim":
        die()
    manager.publish_version(1, "/weights/1")
    die()


def check_whole(folder: Path) -> None:
    """Every row has its blob, every blob reads back, no batch lost or repeated a trajectory."""
    with open_manager(folder) as manager:
        facts = manager.trajectories()
        for row in facts:
            trajectory = manager.load_trajectory(row.trajectory_id)
            for sha in trajectory.steps[0].completion.image_hashes:
                manager.load_image(sha)
    conn = sqlite3.connect(folder / "ledger.sqlite")
    assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert conn.execute("SELECT count(*) FROM rollout_run").fetchone() == (len(facts),)
    orphans = "SELECT count(*) FROM episode WHERE state = 'stored' AND episode_id NOT IN "
    assert conn.execute(orphans + "(SELECT episode_id FROM trajectory)").fetchone() == (0,)
    conn.close()


def start(target, *args):
    process = SPAWN.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def test_runner_and_trainer_at_the_same_time(tmp_path):
    go, stop = SPAWN.Event(), SPAWN.Event()
    processes = [start(t, tmp_path, go, stop) for t in (runner_process, trainer_process)]
    go.set()  # both may open, and so create, the ledger at the same time
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    check_whole(tmp_path)
    conn = sqlite3.connect(tmp_path / "ledger.sqlite")
    assert conn.execute("SELECT sum(used), max(used) FROM rollout_run").fetchone() == (24, 1)
    worst = "SELECT max(staleness_max), count(*) FROM train_batch WHERE state = 'acknowledged'"
    staleness_max, num_batches = conn.execute(worst).fetchone()
    assert staleness_max <= 1
    assert num_batches == NUM_STEPS
    conn.close()


@pytest.mark.parametrize(
    ("point", "versions"),
    [
        ("after the claim", 1),
        ("within a transaction", 1),
        ("after the publish", 2),
        ("after the blobs", 2),
    ],
)
def test_a_kill_at_any_point_loses_and_repeats_nothing(tmp_path, point, versions):
    process = start(crash_process, tmp_path, point)
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    check_whole(tmp_path)
    with open_manager(tmp_path) as manager:
        assert manager.latest_version() == versions - 1
        num_running = 1 if point == "after the blobs" else 0
        assert manager.recover() == num_running
        assert manager.resume_from(0) == 2
        manager.publish_version(0, "/weights/0")
        num_stored = len(manager.trajectories())
        assert num_stored == 8
        batch = manager.claim_batch(1)
        assert [g.group_id for g in batch.groups] == ["g000000", "g000001"]
        manager.publish_version(1, "/weights/1b")
        assert [g.group_id for g in manager.claim_batch(2).groups] == ["g000002", "g000003"]
        manager.publish_version(2, "/weights/2b")
        assert manager.acknowledge(2, "/ckpt/2", 3) == 2
        while run_once(manager):
            pass
        ids = [row.trajectory_id for row in manager.trajectories()]
        assert len(set(ids)) == len(ids) == num_stored + 8
    check_whole(tmp_path)
