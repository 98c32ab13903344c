"""The runner's side: planning, storing, failures, recovery, how groups close."""

import sqlite3
from pathlib import Path

import pytest

from dart_gui.config import CurationConfig, DataConfig
from dart_gui.data.fakes import fake_trajectory
from dart_gui.data.manager import DataManager
from dart_gui.data.sampler import RoundRobinSampler
from dart_gui.errors import DataError
from dart_gui.types import StopReason, Task

TASKS = ["s/a", "s/b", "s/c"]


@pytest.fixture
def opened(tmp_path):
    managers = []

    def open_one(**changes):
        settings = {"group_size": 4, "max_staleness": 1}
        settings |= changes.pop("data", {})
        manager = DataManager(
            f"sqlite:///{tmp_path}/ledger.sqlite",
            str(tmp_path / "blobs"),
            config=DataConfig(**settings),
            curation=changes.pop("curation", CurationConfig()),
            sampler=RoundRobinSampler(TASKS, seed=5, train_seed=lambda rng: rng.randrange(1000)),
            clock=lambda: 1000.0,
            **{"run_id": "r1", "groups_per_step": 2, "max_attempts": 2} | changes,
        )
        managers.append(manager)
        return manager

    yield open_one
    for manager in managers:
        manager.close()


@pytest.fixture
def manager(opened):
    manager = opened()
    manager.publish_version(0, "/weights/0")
    return manager


def rows(tmp_path: Path, query: str) -> list[tuple]:
    conn = sqlite3.connect(tmp_path / "ledger.sqlite")
    found = conn.execute(query).fetchall()
    conn.close()
    return found


def store(manager, planned, reward, versions=(0,)):
    trajectory, images = fake_trajectory(planned, run_id="r1", reward=reward, versions=versions)
    manager.store(trajectory, images)
    return trajectory


def fail_for_good(manager, planned):
    """Both attempts fail. Meant for the oldest episode, which is handed out again at once."""
    manager.fail(planned, StopReason.ENV_ERROR, "gone")
    again = manager.next_episode(0)
    assert (again.episode_id, again.attempt) == (planned.episode_id, 2)
    manager.fail(again, StopReason.ENV_ERROR, "gone again")


# --- planning -----------------------------------------------------------------------------------


def test_a_group_is_planned_whole_before_its_first_episode(manager, tmp_path):
    first = manager.next_episode(0)
    assert (first.group_id, first.episode_id, first.attempt) == ("g000000", "g000000-00", 1)
    assert manager.counts()["episodes"] == {
        "planned": 3,
        "running": 1,
        "stored": 0,
        "cancelled": 0,
    }
    assert rows(tmp_path, "SELECT group_id, state, size, planned_version FROM task_group") == [
        ("g000000", "open", 4, 0)
    ]


def test_episodes_of_a_group_share_the_task_and_differ_in_sampling(manager):
    group = [manager.next_episode(0) for _ in range(4)]
    assert {p.group_id for p in group} == {"g000000"}
    assert len({p.task for p in group}) == 1
    assert len({p.seed for p in group}) == 4
    assert manager.next_episode(0).group_id == "g000001"


def test_admission_stops_at_the_ladder(manager):
    # S = 1, G = 2 at version 0: (S + 1) * G = 4 groups of 4.
    planned = []
    while (episode := manager.next_episode(0)) is not None:
        planned.append(episode)
    assert len(planned) == 16
    assert len({p.group_id for p in planned}) == 4
    assert manager.counts()["in_system"] == 4


def test_a_skipped_group_gives_its_slot_back(manager):
    episodes = [manager.next_episode(0) for _ in range(16)]
    for planned in episodes[:4]:
        store(manager, planned, 0.0)
    assert manager.counts()["skipped"] == {"zero_variance": 1}
    assert manager.next_episode(0).group_id == "g000004"


def test_a_lagging_service_gets_the_old_plan_but_no_new_group(opened):
    manager = opened(data={"max_staleness": 0, "group_size": 2})
    for step in range(3):
        manager.publish_version(step, f"/w/{step}")  # nothing in the system: 0, 1, 2
    assert manager.next_episode(1) is None
    planned = manager.next_episode(2)
    assert planned is not None
    assert manager.next_episode(1) is None  # its sibling waits for version 2 too
    assert manager.next_episode(2).group_id == planned.group_id


def test_what_is_planned_is_a_function_of_the_seed(opened, tmp_path):
    def drawn(run_id):
        manager = opened(run_id=run_id)
        return [(p.task, p.seed) for _ in range(6) if (p := manager.next_episode(0)) is not None]

    assert drawn("ra") == drawn("rb")


# --- storing ------------------------------------------------------------------------------------


def test_a_stored_trajectory_reads_back(manager):
    planned = manager.next_episode(0)
    trajectory = store(manager, planned, 0.5, versions=(0, 0, 0))
    assert manager.load_trajectory(planned.episode_id) == trajectory
    for step in trajectory.steps:
        for sha in step.completion.image_hashes:
            assert manager.load_image(sha).startswith(b"\x89PNG")
    (facts,) = manager.trajectories()
    assert (facts.trajectory_id, facts.num_steps, facts.num_response_tokens) == (
        planned.episode_id,
        3,
        9,
    )
    assert (facts.model_s, facts.env_s, facts.stored_at) == (0.75, 0.375, 1000.0)


def test_the_published_row(manager, tmp_path):
    manager.publish_version(1, "/weights/1")
    planned = manager.next_episode(0)
    store(manager, planned, 0.5, versions=(0, 1))
    query = (
        "SELECT run_id, trajectory_id, task_id, split_dir, reward, num_chunks, used, "
        "model_version, instruction FROM rollout_run"
    )
    task = planned.task.task_id
    assert rows(tmp_path, query) == [
        ("r1", "g000000-00", task, None, 0.5, 2, 0, "/weights/1", f"do {task}")
    ]
    assert rows(tmp_path, "SELECT path FROM checkpoint WHERE path = '/weights/1'")


def test_storing_twice_changes_nothing(manager, tmp_path):
    planned = manager.next_episode(0)
    store(manager, planned, 0.5)
    store(manager, planned, 0.5)
    assert rows(tmp_path, "SELECT count(*) FROM rollout_run") == [(1,)]
    with pytest.raises(DataError, match="a trajectory never changes"):
        store(manager, planned, 0.75)
    assert manager.load_trajectory(planned.episode_id).reward == 0.5


def test_a_failed_store_leaves_no_row(manager, tmp_path):
    planned = manager.next_episode(0)
    trajectory, images = fake_trajectory(planned, run_id="r1", reward=1.0, versions=(0, 0))
    images.popitem()
    with pytest.raises(DataError, match="screenshot"):
        manager.store(trajectory, images)
    assert rows(tmp_path, "SELECT count(*) FROM rollout_run") == [(0,)]
    assert manager.trajectories() == []
    store(manager, planned, 1.0, versions=(0, 0))


def test_what_nobody_planned_is_refused(manager):
    planned = manager.next_episode(0)
    good, images = fake_trajectory(planned, run_id="r1", reward=1.0)

    def changed(**fields):
        copy = object.__new__(type(good))
        for name in good.__slots__:
            object.__setattr__(copy, name, fields.get(name, getattr(good, name)))
        return copy

    for fields, message in [
        ({"run_id": "r2"}, "of run r2 came to the data manager of run r1"),
        ({"trajectory_id": "g000000-99"}, "no planned episode g000000-99"),
        ({"attempt": 2}, "attempt 2 of episode g000000-00 is over: attempt 1 is running"),
        ({"task": Task(task_id="s/x", seed=1)}, "was planned as"),
        ({"trajectory_id": "g000000-01"}, "episode g000000-01 cannot move planned -> stored"),
    ]:
        with pytest.raises(DataError, match=message):
            manager.store(changed(**fields), images)
    assert manager.trajectories() == []


def test_a_number_that_is_not_finite_is_refused(manager):
    planned = manager.next_episode(0)
    trajectory, images = fake_trajectory(planned, run_id="r1", reward=1.0)
    trajectory.steps[0].completion.rollout_logprobs[0] = float("nan")
    with pytest.raises(DataError, match=r"step 0 of trajectory g000000-00 .* not finite"):
        manager.store(trajectory, images)


def test_a_long_instruction_is_cut_in_the_published_table_only(manager, tmp_path):
    planned = manager.next_episode(0)
    trajectory, images = fake_trajectory(planned, run_id="r1", reward=1.0)
    object.__setattr__(trajectory, "instruction", "é" * 3000)
    manager.store(trajectory, images)
    assert rows(tmp_path, "SELECT length(instruction) FROM rollout_run") == [(1024,)]
    assert len(manager.load_trajectory(planned.episode_id).instruction) == 3000


# --- failures -----------------------------------------------------------------------------------


def test_a_failed_attempt_is_recorded_and_tried_again_with_another_seed(manager):
    planned = manager.next_episode(0)
    manager.fail(planned, StopReason.TIMEOUT, "no answer in 20 s")
    again = manager.next_episode(0)
    assert (again.episode_id, again.attempt, again.task) == (planned.episode_id, 2, planned.task)
    assert again.seed != planned.seed
    assert manager.counts()["failures"] == {"timeout": 1}


def test_an_episode_is_cancelled_after_its_last_attempt(manager):
    planned = manager.next_episode(0)
    fail_for_good(manager, planned)
    assert manager.counts()["cancelled_episodes"] == {"env_error": 1}
    assert manager.counts()["failures"] == {"env_error": 2}
    with pytest.raises(DataError, match="cannot move cancelled -> planned"):
        manager.fail(planned, StopReason.ENV_ERROR, "")


def test_a_group_with_half_of_its_members_is_trained(manager):
    group = [manager.next_episode(0) for _ in range(4)]
    store(manager, group[0], 1.0)
    store(manager, group[1], 0.0)
    fail_for_good(manager, group[2])
    assert manager.counts()["groups"]["open"] == 1
    fail_for_good(manager, group[3])
    assert manager.counts()["groups"]["complete"] == 1


def test_a_group_with_less_than_half_is_cancelled_and_its_rows_stay(manager):
    group = [manager.next_episode(0) for _ in range(4)]
    for planned in group[1:]:
        fail_for_good(manager, planned)
    store(manager, group[0], 1.0)
    counts = manager.counts()
    assert counts["cancelled"] == {"lost_members": 1}
    assert counts["in_system"] == 0
    assert manager.load_trajectory(group[0].episode_id).reward == 1.0


def test_zero_variance_is_a_switch(opened):
    manager = opened(curation=CurationConfig(skip_zero_variance=False))
    for _ in range(4):
        store(manager, manager.next_episode(0), 1.0)
    assert manager.counts()["groups"]["complete"] == 1


def test_steps_older_than_the_plan_drop_the_group_where_the_bound_would_break(opened):
    manager = opened(data={"max_staleness": 0, "group_size": 2})
    manager.publish_version(0, "/w/0")
    manager.publish_version(1, "/w/1")
    store(manager, manager.next_episode(1), 1.0, versions=(1,))
    store(manager, manager.next_episode(1), 0.0, versions=(0, 1))  # a worker went back
    assert manager.counts()["skipped"] == {"stale": 1}


# --- crashes ------------------------------------------------------------------------------------


def test_recover_returns_running_episodes_with_the_same_attempt(manager, opened):
    lost = [manager.next_episode(0) for _ in range(3)]
    store(manager, lost[1], 1.0)
    again = opened()
    assert again.recover() == 2
    assert again.recover() == 0
    assert again.counts()["failures"] == {"interrupted": 2}
    assert [again.next_episode(0) for _ in range(2)] == [lost[0], lost[2]]


def test_a_runner_that_was_declared_gone_cannot_store(manager, opened):
    planned = manager.next_episode(0)
    opened().recover()
    with pytest.raises(DataError, match="planned -> stored"):
        store(manager, planned, 1.0)


def test_a_restarted_run_goes_on_with_the_next_group(manager, opened):
    for _ in range(4):
        store(manager, manager.next_episode(0), 1.0)
    assert opened().next_episode(0).group_id == "g000001"


# --- listings -----------------------------------------------------------------------------------


def test_task_stats_count_the_newest(manager, opened):
    by_task = {}
    for index in range(16):
        planned = manager.next_episode(0)
        reward = [1.0, 0.0, 0.5, 0.0][index % 4]
        store(manager, planned, reward, versions=(0,) * (1 + index % 4))
        by_task.setdefault(planned.task.task_id, []).append(reward)
    every = manager.task_stats()
    assert {task: stats.num for task, stats in every.items()} == {
        task: len(rewards) for task, rewards in by_task.items()
    }
    for stats in every.values():
        assert (stats.success_rate, stats.mean_reward, stats.mean_steps) == (0.25, 0.375, 2.5)
    newest = manager.task_stats(last=2)
    assert {(s.num, s.success_rate, s.mean_reward, s.mean_steps) for s in newest.values()} == {
        (2, 0.0, 0.25, 3.5)
    }


def test_listing_filters_and_pages(manager):
    for index in range(6):
        store(manager, manager.next_episode(0), float(index % 2))
    assert [t.id for t in manager.trajectories()] == [1, 2, 3, 4, 5, 6]
    assert [t.id for t in manager.trajectories(success=True)] == [2, 4, 6]
    assert [t.id for t in manager.trajectories(group_id="g000001")] == [5, 6]
    assert [t.id for t in manager.trajectories(after_id=3, limit=2)] == [4, 5]
    assert manager.trajectories(task_id="s/none") == []


def test_runs_in_one_ledger_do_not_see_each_other(manager, opened):
    store(manager, manager.next_episode(0), 1.0)
    other = opened(run_id="r2")
    assert other.trajectories() == []
    assert other.counts()["in_system"] == 0
    assert other.latest_version() is None
    assert other.next_episode(0).group_id == "g000000"
    with pytest.raises(DataError, match="run r2 has no trajectory"):
        other.load_trajectory("g000000-00")
