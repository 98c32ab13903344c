"""The experience pool over the real ledger: who lends, to whom, and how much it counts."""

import json

import pytest

from dart_gui.config import CurationConfig, DataConfig
from dart_gui.data.fakes import fake_trajectory
from dart_gui.data.manager import DataManager
from dart_gui.data.pool import Conditions, ExperiencePool, Provenance, expired
from dart_gui.data.sampler import RoundRobinSampler
from dart_gui.errors import ConfigError, DataError
from dart_gui.train.foreign import as_foreign
from dart_gui.types import PlannedEpisode, Task

NOW = Conditions(env_version="e2", verifier_version="e2", renderer="r1")


def provenance(**changes):
    conditions = Conditions(**{**{n: getattr(NOW, n) for n in NOW.__slots__}, **changes})
    return Provenance(
        source="script", origin="test", conditions=conditions, policy_version=None, added_at=7.5
    )


def success(name, *, task_id="s/a", seed=1, num_steps=2, reward=1.0):
    planned = PlannedEpisode(
        episode_id=name, group_id="pool", task=Task(task_id=task_id, seed=seed), attempt=1, seed=0
    )
    trajectory, images = fake_trajectory(
        planned, run_id="other", reward=reward, versions=[0] * num_steps
    )
    return as_foreign(trajectory), images


@pytest.fixture
def pool(tmp_path):
    return ExperiencePool(folder=tmp_path / "pool", create=True)


@pytest.fixture
def opened(tmp_path):
    managers = []

    def open_one(**curation):
        manager = DataManager(
            f"sqlite:///{tmp_path}/ledger.sqlite",
            str(tmp_path / "blobs"),
            run_id="r1",
            config=DataConfig(group_size=4, max_staleness=3),
            curation=CurationConfig(**curation),
            groups_per_step=1,
            sampler=RoundRobinSampler(["s/a"], seed=5, train_seed=lambda rng: 1),
            conditions=NOW,
        )
        managers.append(manager)
        if manager.latest_version() is None:
            manager.publish_version(0, "/w/0")
        return manager

    yield open_one
    for manager in managers:
        manager.close()


def play(manager, *rewards):
    """One group with these rewards; its id."""
    for reward in rewards:
        planned = manager.next_episode(0)
        manager.store(*fake_trajectory(planned, run_id="r1", reward=reward, versions=(0, 0)))
    return planned.group_id


# --- the pool itself -----------------------------------------------------------------------------


def test_entries_read_back_with_their_provenance(pool, tmp_path):
    trajectory, images = success("one")
    entry = pool.add(trajectory, images, provenance())
    again = ExperiencePool(folder=tmp_path / "pool")
    assert again.entries() == [entry]
    assert entry.provenance.conditions == NOW
    assert again.load(entry.entry_id, entry.blob_sha256) == trajectory
    assert again.blobs.image(next(iter(images))).startswith(b"\x89PNG")


def test_the_same_success_is_added_once(pool):
    trajectory, images = success("one")
    assert pool.add(trajectory, images, provenance()) is not None
    assert pool.add(trajectory, images, provenance()) is None
    assert len(pool.entries()) == 1


def test_another_process_sees_what_was_added_since(pool, tmp_path):
    other = ExperiencePool(folder=tmp_path / "pool", create=True)
    assert other.entries() == []
    pool.add(*success("one"), provenance())
    assert len(other.entries()) == 1
    with (tmp_path / "pool" / "index.jsonl").open("ab") as index:
        index.write(b'{"entry_id": "half a li')
    assert len(other.entries()) == 1


def test_failures_and_sampled_trajectories_are_refused(pool):
    with pytest.raises(DataError, match="no success"):
        pool.add(*success("bad", reward=0.5), provenance())
    planned = PlannedEpisode(
        episode_id="x", group_id="g", task=Task(task_id="s/a", seed=1), attempt=1, seed=0
    )
    with pytest.raises(DataError, match="not marked as foreign"):
        pool.add(*fake_trajectory(planned, run_id="r", reward=1.0), provenance())
    trajectory, _ = success("no images")
    with pytest.raises(DataError, match="neither in the blobs"):
        pool.add(trajectory, {}, provenance())
    assert pool.entries() == []


def test_a_folder_that_is_no_pool(tmp_path):
    with pytest.raises(ConfigError, match="dart-gui pool add"):
        ExperiencePool(folder=tmp_path)


def test_a_damaged_index_is_named(pool, tmp_path):
    pool.add(*success("one"), provenance())
    index = tmp_path / "pool" / "index.jsonl"
    index.write_text(json.dumps({"entry_id": 1}) + "\n")
    with pytest.raises(DataError, match=r"index\.jsonl"):
        ExperiencePool(folder=tmp_path / "pool").entries()


@pytest.mark.parametrize("what", ["env_version", "verifier_version", "renderer"])
def test_an_entry_expires_when_its_conditions_change(pool, what):
    entry = pool.add(*success("one"), provenance(**{what: "other"}))
    assert expired(entry, NOW) == what


# --- borrowing -----------------------------------------------------------------------------------


def test_a_group_in_which_all_failed_borrows_and_is_trained(opened, pool, tmp_path):
    lent, images = success("lent", num_steps=3)
    pool.add(lent, images, provenance())
    manager = opened(pool=str(tmp_path / "pool"), pool_share=1.0, pool_weight=0.5)
    play(manager, 0.0, 0.0, 0.0, 0.0)
    batch = manager.claim_batch(1)
    own, (borrowed,) = batch.trajectories[:4], batch.trajectories[4:]
    assert borrowed.foreign
    assert borrowed.trajectory == lent
    # Rewards 0 0 0 0 1: mean .2, std sqrt(.8 / 4) = .4472
    assert [m.advantage for m in own] == pytest.approx([-0.44721] * 4, abs=1e-4)
    assert borrowed.advantage == pytest.approx(1.78885, abs=1e-4)
    assert [m.weight for m in own] == [0.5] * 4
    assert borrowed.weight == pytest.approx(0.5 / 3)
    assert manager.load_image(next(iter(images))).startswith(b"\x89PNG")


def test_without_a_match_the_group_is_skipped_as_ever(opened, pool, tmp_path):
    pool.add(*success("other task", task_id="s/b"), provenance())
    pool.add(*success("expired"), provenance(env_version="e1"))
    manager = opened(pool=str(tmp_path / "pool"))
    play(manager, 0.0, 0.0, 0.0, 0.0)
    assert manager.counts()["skipped"] == {"zero_variance": 1}
    assert manager.claim_batch(1) is None


def test_a_group_with_a_success_borrows_nothing(opened, pool, tmp_path):
    pool.add(*success("lent"), provenance())
    manager = opened(pool=str(tmp_path / "pool"))
    play(manager, 0.0, 1.0, 0.0, 0.0)
    assert len(manager.claim_batch(1).trajectories) == 4
    play(manager, 1.0, 1.0, 1.0, 1.0)
    assert manager.counts()["skipped"] == {"zero_variance": 1}


def test_an_instance_match_wants_the_same_seed(opened, pool, tmp_path):
    pool.add(*success("other seed", seed=2), provenance())
    manager = opened(pool=str(tmp_path / "pool"), pool_match="instance")
    play(manager, 0.0, 0.0, 0.0, 0.0)
    assert manager.counts()["skipped"] == {"zero_variance": 1}
    pool.add(*success("same seed", seed=1), provenance())
    play(manager, 0.0, 0.0, 0.0, 0.0)
    assert manager.claim_batch(1).trajectories[-1].trajectory.trajectory_id == "same seed"


def test_entries_take_turns(opened, pool, tmp_path):
    for name in ("one", "two"):
        pool.add(*success(name), provenance())
    manager = opened(pool=str(tmp_path / "pool"))
    lent = []
    for step in (1, 2, 3, 4):
        play(manager, 0.0, 0.0, 0.0, 0.0)
        lent.append(manager.claim_batch(step).trajectories[-1].trajectory.trajectory_id)
    assert lent == ["two", "one", "two", "one"]


def test_the_share_of_a_batch_is_capped(opened, pool, tmp_path):
    pool.add(*success("lent"), provenance())
    manager = opened(pool=str(tmp_path / "pool"), pool_share=0.1)
    play(manager, 0.0, 0.0, 0.0, 0.0)
    members = manager.claim_batch(1).trajectories
    weights = [m.weight * len(m.trajectory.steps) for m in members]
    assert weights[-1] / sum(weights) == pytest.approx(0.1)


def test_own_successes_are_lent_online_and_the_batch_is_the_same_after_a_crash(opened):
    manager = opened(pool_online=True)
    play(manager, 0.0, 1.0, 0.0, 0.0)
    manager.claim_batch(1)
    play(manager, 0.0, 0.0, 0.0, 0.0)
    before = manager.claim_batch(2)
    lent = before.trajectories[-1]
    assert (lent.foreign, lent.trajectory.success) == (True, True)
    again = opened(pool_online=True)
    again.resume_from(0)
    batches = [again.claim_batch(1), again.claim_batch(2)]
    assert batches[1].trajectories == before.trajectories


def test_the_pool_that_was_lent_from_has_to_stay(opened, pool, tmp_path):
    pool.add(*success("lent"), provenance())
    manager = opened(pool=str(tmp_path / "pool"))
    play(manager, 0.0, 0.0, 0.0, 0.0)
    with pytest.raises(DataError, match=r"set curation\.pool"):
        opened().claim_batch(1)
