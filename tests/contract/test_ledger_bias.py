"""Is what is trained like what was dispatched? A synthetic mix of quick and slow tasks."""

import heapq
import random
from collections import Counter

import pytest

from dart_gui.config import CurationConfig, DataConfig
from dart_gui.data.fakes import fake_trajectory
from dart_gui.data.manager import DataManager
from dart_gui.data.sampler import RoundRobinSampler

STEPS = {"s/quick": 1, "s/slow": 12}  # an episode takes a second a step


@pytest.mark.parametrize("task_order", ["round_robin", "signal"])
def test_slow_tasks_are_trained_as_often_as_they_are_dispatched(tmp_path, task_order):
    """Six slots, a trainer that takes what is complete: an asynchronous system that trained what
    comes first would see twelve quick episodes for a slow one."""
    now = 0.0
    manager = DataManager(
        f"sqlite:///{tmp_path}/ledger.sqlite",
        str(tmp_path / "blobs"),
        run_id="r1",
        config=DataConfig(group_size=2, max_staleness=3),
        curation=CurationConfig(task_order=task_order, task_floor=1.0),
        groups_per_step=2,
        sampler=RoundRobinSampler(list(STEPS), seed=5, train_seed=lambda rng: 1),
        clock=lambda: now,
    )
    manager.publish_version(0, "/w/0")
    rng = random.Random(0)
    running, dispatched, train_step = [], Counter(), 0
    while train_step < 40:
        while len(running) < 6:
            planned = manager.next_episode(train_step)
            if planned is None:
                break
            dispatched[planned.task.task_id] += 1
            seconds = STEPS[planned.task.task_id] * rng.uniform(0.8, 1.2)
            heapq.heappush(running, (now + seconds, planned.episode_id, planned, train_step))
        now, _, planned, version = heapq.heappop(running)
        versions = [version] * STEPS[planned.task.task_id]
        reward = float(planned.episode_id.endswith("1"))
        manager.store(*fake_trajectory(planned, run_id="r1", reward=reward, versions=versions))
        while manager.claim_batch(train_step + 1) is not None:
            train_step += 1
            manager.publish_version(train_step, f"/w/{train_step}")
    flow = manager.task_flow()
    manager.close()
    trained = {task: flow[task]["trained"]["num_trajectories"] for task in STEPS}
    # All but what is still under way, at most (max_staleness + 1) * groups_per_step groups of two.
    for task, number in trained.items():
        assert dispatched[task] - 16 <= number <= dispatched[task]
    assert 0.4 < trained["s/slow"] / sum(trained.values()) < 0.6
    assert flow["s/slow"]["trained"]["mean_steps"] == 12
    assert flow["s/quick"]["trained"]["mean_s"] == pytest.approx(1.0)
