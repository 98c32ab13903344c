"""The trainer's side: claim, publish, acknowledge, resume."""

import sqlite3

import pytest

from dart_gui.config import CurationConfig, DataConfig
from dart_gui.data.fakes import fake_trajectory
from dart_gui.data.manager import CheckpointRecord, DataManager
from dart_gui.data.sampler import RoundRobinSampler
from dart_gui.errors import DataError
from dart_gui.types import StopReason, WeightsRef


@pytest.fixture
def opened(tmp_path):
    managers = []

    def open_one(**changes):
        data = {"group_size": 2, "max_staleness": 1} | changes.pop("data", {})
        manager = DataManager(
            f"sqlite:///{tmp_path}/ledger.sqlite",
            str(tmp_path / "blobs"),
            run_id="r1",
            config=DataConfig(**data),
            curation=changes.pop("curation", CurationConfig()),
            groups_per_step=changes.pop("groups_per_step", 2),
            sampler=RoundRobinSampler(["s/a", "s/b"], seed=5, train_seed=lambda rng: 1),
            clock=lambda: 1000.0,
        )
        managers.append(manager)
        return manager

    yield open_one
    for manager in managers:
        manager.close()


@pytest.fixture
def manager(opened):
    """At version 0, with room for S = 1, G = 2: four groups of two."""
    manager = opened()
    manager.publish_version(0, "/weights/0")
    return manager


def query(tmp_path, sql):
    conn = sqlite3.connect(tmp_path / "ledger.sqlite")
    found = conn.execute(sql).fetchall()
    conn.close()
    return found


def store(manager, planned, reward, versions):
    trajectory, images = fake_trajectory(planned, run_id="r1", reward=reward, versions=versions)
    manager.store(trajectory, images)


def fill(manager, num_groups, *, version=0, num_steps=1):
    """Plan and store whole groups with variance, sampled at ``version``; their ids."""
    ids = []
    for index in range(2 * num_groups):
        planned = manager.next_episode(version)
        assert planned is not None
        store(manager, planned, float(index % 2), (version,) * num_steps)
        ids.append(planned.group_id)
    return sorted(set(ids))


def claimed_ids(batch):
    return [group.group_id for group in batch.groups]


def test_too_few_groups_give_no_batch(manager):
    assert manager.claim_batch(1) is None
    fill(manager, 1)
    assert manager.claim_batch(1) is None
    assert manager.counts()["batches"]["claimed"] == 0


def test_a_batch_has_the_oldest_groups_with_advantages_and_weights(manager):
    fill(manager, 3, num_steps=4)
    batch = manager.claim_batch(1)
    assert claimed_ids(batch) == ["g000000", "g000001"]
    assert (batch.train_step, batch.trainer_version) == (1, 0)
    assert (batch.staleness_mean, batch.staleness_max) == (0.0, 0)
    low, high = batch.groups[0].trajectories
    assert (low.trajectory.reward, high.trajectory.reward) == (0.0, 1.0)
    # mean 0.5, unbiased std of (0, 1) = 0.70711
    assert high.advantage == pytest.approx(0.5 / (0.5**0.5 + 1e-6))
    assert low.advantage == pytest.approx(-high.advantage)
    assert (low.weight, high.weight) == (0.25, 0.25)
    assert batch.groups[0].task_id == low.trajectory.task.task_id
    assert len(batch.trajectories) == 4
    assert low.trajectory == manager.load_trajectory("g000000-00")


def test_step_statistics_are_a_switch(opened):
    manager = opened(
        curation=CurationConfig(advantage="step", normalize_std=False), groups_per_step=1
    )
    store(manager, manager.next_episode(0), 1.0, (0,))
    store(manager, manager.next_episode(0), 0.0, (0, 0, 0))
    (group,) = manager.claim_batch(1).groups
    # Over four steps the mean is 0.25.
    assert [t.advantage for t in group.trajectories] == [0.75, -0.25]
    assert [t.weight for t in group.trajectories] == [1.0, 1.0]


def test_versions_count_up_in_both_tables(manager, tmp_path):
    assert manager.latest_version() == 0
    assert manager.publish_version(1, "/weights/1") == WeightsRef(
        policy_version=1, path="/weights/1"
    )
    assert manager.latest_weights() == WeightsRef(policy_version=1, path="/weights/1")
    assert manager.weights(0) == WeightsRef(policy_version=0, path="/weights/0")
    assert manager.weights(9) is None
    sql = "SELECT name, version, run_id, status, path, source, operator FROM checkpoint"
    source = "Training Generated"
    assert query(tmp_path, sql) == [
        ("dart-gui", "v0", "r1", "COMPLETED", "/weights/0", source, None),
        ("dart-gui", "v1", "r1", "COMPLETED", "/weights/1", source, None),
    ]


def test_a_path_that_the_published_table_cannot_hold(manager):
    with pytest.raises(DataError, match="256 characters"):
        manager.publish_version(1, "/" + "x" * 255)
    assert manager.latest_version() == 0


def test_admission_counts_a_claimed_batch_as_a_version(opened):
    manager = opened(data={"max_staleness": 0})
    fill(manager, 2)
    assert manager.next_episode(0) is None
    manager.claim_batch(1)
    # Work planned now would be consumed at version 1, so version 0 is too old for it.
    assert manager.counts()["trainer_version"] == 1
    assert manager.next_episode(0) is None
    manager.publish_version(0, "/w/0")
    manager.publish_version(1, "/w/1")
    assert manager.counts()["trainer_version"] == 1
    assert manager.next_episode(0) is None
    assert manager.next_episode(1) is not None


def test_the_trainer_waits_for_a_straggler_that_would_become_too_old(manager):
    straggler = [manager.next_episode(0) for _ in range(2)]
    others = fill(manager, 3)
    # Claiming two of three complete groups leaves the straggler and another one at version 1.
    assert claimed_ids(manager.claim_batch(1)) == others[:2]
    manager.publish_version(1, "/weights/1")
    newer = fill(manager, 2, version=1)
    # Complete: one of version 0 and two of version 1. Claiming two now would take the straggler,
    # planned at version 0, to version 2 at the earliest: staleness 2 > 1.
    assert manager.claim_batch(2) is None
    store(manager, straggler[0], 1.0, (0,))
    store(manager, straggler[1], 0.0, (0,))
    batch = manager.claim_batch(2)
    assert claimed_ids(batch) == ["g000000", others[2]]
    assert (batch.staleness_max, batch.trainer_version) == (1, 1)
    manager.publish_version(2, "/weights/2")
    assert claimed_ids(manager.claim_batch(3)) == newer


def test_a_cancelled_straggler_lets_the_trainer_go_on(manager):
    straggler = [manager.next_episode(0) for _ in range(2)]
    fill(manager, 3)
    manager.claim_batch(1)
    manager.publish_version(1, "/weights/1")
    fill(manager, 2, version=1)
    assert manager.claim_batch(2) is None
    for planned in straggler:
        manager.fail(planned, StopReason.ENV_ERROR, "")
    for _ in range(4):
        again = manager.next_episode(1)
        assert again.group_id == "g000000"
        manager.fail(again, StopReason.ENV_ERROR, "")
    assert manager.counts()["cancelled"] == {"lost_members": 1}
    assert manager.claim_batch(2) is not None


def test_a_step_cannot_be_claimed_twice(manager):
    fill(manager, 4)
    manager.claim_batch(1)
    with pytest.raises(DataError, match="train step 1 of run r1 is claimed already"):
        manager.claim_batch(1)


def test_acknowledging_trains_for_good(manager, tmp_path):
    fill(manager, 4)
    for step in (1, 2):
        manager.claim_batch(step)
        manager.publish_version(step, f"/weights/{step}")
    assert query(tmp_path, "SELECT sum(used) FROM rollout_run") == [(0,)]
    assert manager.acknowledge(1, "/ckpt/1", 1) == 1
    assert manager.acknowledge(1, "/ckpt/1", 1) == 0
    assert manager.counts()["groups"]["trained"] == 2
    used = "SELECT trajectory_id FROM rollout_run WHERE used = 1 ORDER BY trajectory_id"
    assert [row[0] for row in query(tmp_path, used)] == [
        "g000000-00",
        "g000000-01",
        "g000001-00",
        "g000001-01",
    ]
    assert manager.acknowledge(2, "/ckpt/2") == 1  # published at this step as version 2
    assert query(tmp_path, "SELECT min(used), max(used), count(*) FROM rollout_run") == [(1, 1, 8)]
    assert manager.latest_checkpoint() == CheckpointRecord(
        train_step=2, path="/ckpt/2", policy_version=2
    )


def test_no_checkpoint_yet(manager):
    assert manager.latest_checkpoint() is None


def test_resume_returns_what_no_checkpoint_lists(manager, opened, tmp_path):
    fill(manager, 4)
    manager.claim_batch(1)
    manager.publish_version(1, "/weights/1")
    manager.acknowledge(1, "/ckpt/1", 1)
    fill(manager, 2, version=1)
    lost = manager.claim_batch(2)
    manager.publish_version(2, "/weights/2")
    lost_unpublished = manager.claim_batch(3)
    assert lost_unpublished is not None

    again = opened()
    assert again.latest_checkpoint().train_step == 1
    assert again.resume_from(1) == 4
    assert again.counts()["batches"] == {
        "claimed": 0,
        "published": 0,
        "acknowledged": 1,
        "returned": 2,
    }
    assert again.publish_version(1, "/ckpt/1").policy_version == 3  # never a number twice
    first, second = again.claim_batch(2), again.claim_batch(3)
    assert claimed_ids(first) == claimed_ids(lost)
    assert claimed_ids(second) == claimed_ids(lost_unpublished)
    assert max(first.staleness_max, second.staleness_max) <= 1
    again.publish_version(2, "/weights/2b")
    again.publish_version(3, "/weights/3b")
    again.acknowledge(3, "/ckpt/3", 5)
    assert query(tmp_path, "SELECT min(used), max(used), count(*) FROM rollout_run") == [(1, 1, 12)]


def test_returned_groups_can_be_claimed_at_once(manager):
    fill(manager, 4)
    for step in (1, 2):
        manager.claim_batch(step)
        manager.publish_version(step, f"/weights/{step}")
    assert manager.resume_from(0) == 4
    assert manager.claim_batch(1).staleness_max == 0  # back at train step 0, whatever the version
    assert manager.claim_batch(2).staleness_max == 1


def test_a_version_that_consumed_no_batch_does_not_make_work_stale(manager):
    fill(manager, 4)
    manager.publish_version(0, "/weights/0-again")
    assert manager.claim_batch(1).staleness_max == 0
    assert manager.claim_batch(2).staleness_max == 1


def test_the_runner_goes_on_after_a_resume(manager, opened):
    fill(manager, 2)
    running = [manager.next_episode(0) for _ in range(4)]
    manager.claim_batch(1)
    manager.publish_version(1, "/weights/1")
    again = opened()
    assert again.resume_from(0) == 2
    assert again.publish_version(0, "/weights/0").policy_version == 2
    for index, planned in enumerate(running):
        store(manager, planned, float(index % 2), (0,))
    first = again.claim_batch(1)
    assert claimed_ids(first) == ["g000000", "g000001"]
    again.publish_version(1, "/weights/1b")
    second = again.claim_batch(2)
    assert claimed_ids(second) == ["g000002", "g000003"]
    # Version 0 at trainer version 3; the resume alone made two of the numbers in between.
    assert (second.trainer_version, second.staleness_max) == (3, 1)


def test_a_lift_hides_no_staleness(opened):
    """A group that was planned before a resume and sampled after it: train steps count in full, and
    the batch that came back makes one more of them than max_staleness."""
    manager = opened(groups_per_step=1)
    manager.publish_version(0, "/weights/0")
    fill(manager, 1)
    waiting = [manager.next_episode(0) for _ in range(2)]
    manager.claim_batch(1)
    manager.publish_version(1, "/weights/1")
    waiting += [manager.next_episode(1) for _ in range(2)]
    again = opened(groups_per_step=1)
    assert again.resume_from(0) == 1
    assert again.publish_version(0, "/weights/0").policy_version == 2
    for index, planned in enumerate(waiting):
        store(again, planned, float(index % 2), (2,))
    staleness = []
    for step in (1, 2, 3):
        staleness.append(again.claim_batch(step).staleness_max)
        again.publish_version(step, f"/weights/{step}b")
    assert staleness == [0, 1, 2]


def test_a_resume_from_an_older_checkpoint_forgets_the_newer(manager, opened):
    fill(manager, 4)
    for step in (1, 2):
        manager.claim_batch(step)
        manager.publish_version(step, f"/weights/{step}")
        manager.acknowledge(step, f"/ckpt/{step}", step)
    again = opened()
    assert again.resume_from(1) == 0  # what checkpoint 2 lists was trained once: not again
    assert again.latest_checkpoint().path == "/ckpt/1"
    assert again.counts()["groups"]["trained"] == 4


def test_a_checkpoint_before_the_publish_of_its_step(manager, opened):
    fill(manager, 2)
    manager.claim_batch(1)
    manager.acknowledge(1, "/ckpt/1", None)
    assert manager.counts()["trainer_version"] == 1
    again = opened()
    assert again.resume_from(1) == 0
    assert again.latest_checkpoint().policy_version is None
    assert again.publish_version(1, "/ckpt/1").policy_version == 1
    assert again.counts()["trainer_version"] == 1


def test_a_trainer_that_was_replaced_is_refused(manager, opened):
    fill(manager, 2)
    manager.claim_batch(1)
    newer = opened()
    newer.resume_from(0)
    for call in (
        lambda: manager.publish_version(1, "/weights/1"),
        lambda: manager.acknowledge(1, "/ckpt/1", 1),
        lambda: manager.claim_batch(1),
    ):
        with pytest.raises(DataError, match="another trainer took run r1 over"):
            call()
    assert newer.latest_version() == 0
    assert newer.claim_batch(1) is not None
    assert manager.next_episode(0) is not None  # planning is not the trainer's


def test_a_damaged_blob_returns_the_batch(manager, tmp_path):
    fill(manager, 2)
    path = tmp_path / "blobs" / "trajectories" / "g000001-00" / "trajectory.json"
    good = path.read_bytes()
    path.write_bytes(good[:-2])
    with pytest.raises(DataError, match=r"g000001-00/trajectory\.json is damaged"):
        manager.claim_batch(1)
    assert manager.counts()["groups"]["complete"] == 2
    path.write_bytes(good)
    assert manager.claim_batch(1) is not None


def test_a_broken_bound_is_an_error_with_its_numbers(manager, opened):
    fill(manager, 4)
    stricter = opened(data={"max_staleness": 0})
    # The run began with 1: the ladder of its four groups was built for that.
    with pytest.raises(
        DataError, match=r"group 2 of 4 .* at trainer version 0 it needs 1 with max"
    ):
        stricter.claim_batch(1)


def test_a_lowered_bound_does_not_hold_the_run_up_after_a_resume(manager, opened):
    fill(manager, 4)
    stricter = opened(data={"max_staleness": 0})
    stricter.resume_from(0)
    stricter.publish_version(0, "/weights/0")
    assert stricter.claim_batch(1) is not None
    assert stricter.claim_batch(2).staleness_max == 1  # as it was planned
