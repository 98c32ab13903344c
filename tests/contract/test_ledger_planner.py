"""What the adaptive rules plan, from the ledger alone: sizes, step limits, the next task."""

import sqlite3
from collections import Counter

import pytest

from dart_gui.config import CurationConfig, DataConfig
from dart_gui.data.fakes import fake_trajectory
from dart_gui.data.manager import DataManager
from dart_gui.data.pool import Conditions
from dart_gui.data.sampler import RoundRobinSampler
from dart_gui.data.task_level import is_probe
from dart_gui.types import StopReason

CONDITIONS = Conditions(env_version="e1", verifier_version="e1", renderer="r")


class Run:
    """A run whose tasks succeed as ``success(task_id, n)`` says for the n-th attempt."""

    def __init__(self, folder, success, *, tasks=("s/a", "s/b"), num_steps=2, **curation):
        self.folder, self.success, self.num_steps = folder, success, num_steps
        self.tasks, self.curation = list(tasks), CurationConfig(**curation)
        self.attempts = Counter()
        self.plans = {}  # group -> (task, size, max_steps)
        self.train_step = 0
        self.manager = self.open()
        self.manager.publish_version(0, "/w/0")

    def open(self):
        return DataManager(
            f"sqlite:///{self.folder}/ledger.sqlite",
            str(self.folder / "blobs"),
            run_id="r1",
            config=DataConfig(group_size=4, max_staleness=2),
            curation=self.curation,
            groups_per_step=1,
            sampler=RoundRobinSampler(self.tasks, seed=5, train_seed=lambda rng: 1),
            max_steps=8,
            conditions=CONDITIONS,
            clock=lambda: 1000.0,
        )

    def restart(self):
        self.manager.close()
        self.manager = self.open()
        self.manager.resume_from(self.train_step)

    def play(self, num_groups):
        """Play groups one after another and train what can be trained."""
        done = len(self.plans) + num_groups
        while True:
            planned = self.manager.next_episode(self.manager.latest_version())
            assert planned is not None
            if planned.group_id not in self.plans and len(self.plans) == done:
                self.manager.recover()
                return
            task_id = planned.task.task_id
            self.plans[planned.group_id] = (task_id, planned.group_size, planned.max_steps)
            good = self.success(task_id, self.attempts[task_id])
            self.attempts[task_id] += 1
            self.manager.store(
                *fake_trajectory(
                    planned,
                    run_id="r1",
                    reward=float(good),
                    versions=[self.manager.latest_version()] * self.num_steps,
                )
            )
            self.train()

    def train(self):
        if self.manager.claim_batch(self.train_step + 1) is not None:
            self.train_step += 1
            self.manager.publish_version(self.train_step, f"/w/{self.train_step}")
            self.manager.acknowledge(self.train_step, f"/c/{self.train_step}")

    def sizes(self, task_id):
        return [size for task, size, _ in self.plans.values() if task == task_id]

    def limits(self, task_id):
        return [limit for task, _, limit in self.plans.values() if task == task_id]


@pytest.fixture
def run(tmp_path):
    runs = []

    def start(success, **changes):
        runs.append(Run(tmp_path, success, **changes))
        return runs[-1]

    yield start
    for each in runs:
        each.manager.close()


def a_is_solved(task_id, n):
    return task_id == "s/a" or n % 2 == 0


def test_by_default_every_group_is_alike(run):
    played = run(a_is_solved)
    played.play(8)
    assert set(played.sizes("s/a") + played.sizes("s/b")) == {4}
    assert played.limits("s/a") == [None] * 4


def test_the_published_rule_shrinks_a_solved_task(run):
    played = run(a_is_solved, rollout_rule="published", max_rollouts=8)
    played.play(10)
    assert played.sizes("s/a") == [8, 2, 2, 2, 2]  # int(9 / 1 - 7) = 2
    assert played.sizes("s/b") == [8] * 5


def test_the_beta_rule_moves_attempts_from_the_solved_task_to_the_open_one(run):
    played = run(a_is_solved, rollout_rule="beta", both_outcomes=0.99)
    played.play(20)
    solved, unsure = played.sizes("s/a"), played.sizes("s/b")
    assert solved[-1] == 2  # the least
    assert unsure[-1] == 6  # what is left of a mean of 4
    assert sum(solved[-1:] + unsure[-1:]) <= 2 * 4


def test_every_member_of_a_group_counts_towards_its_own_size(run):
    played = run(a_is_solved, rollout_rule="published", max_rollouts=6)
    played.play(6)
    counts = played.manager.counts()
    sizes = [size for _, size, _ in played.plans.values()]
    assert counts["episodes"]["stored"] == sum(sizes)
    assert counts["groups"]["open"] == 1  # the one that was planned next


def test_the_step_limit_follows_the_successes_and_is_probed(run):
    played = run(lambda task, n: n % 2 == 0, tasks=["s/a"], step_limit="dynamic", num_steps=2)
    played.play(30)
    limits = played.limits("s/a")
    # Eight successes are four groups; then 2 + 1 steps, and now and then all of them.
    assert limits[:4] == [None] * 4
    probes = [number for number in range(4, 30) if is_probe(number, seed=5)]
    assert [n for n in range(4, 30) if limits[n] is None] == probes
    assert {limit for limit in limits[4:] if limit is not None} == {3}


def test_a_failure_at_the_dynamic_limit_is_not_punished(run):
    played = run(lambda task, n: n % 4 == 0, tasks=["s/a"], step_limit="dynamic", num_steps=1)
    played.play(12)
    assert played.limits("s/a")[-1] is not None
    while True:
        planned = played.manager.next_episode(played.manager.latest_version())
        if planned.group_id not in played.plans:
            break
    members = [planned]
    members += [played.manager.next_episode(played.manager.latest_version()) for _ in range(3)]
    assert planned.max_steps == 2
    for index, member in enumerate(members):
        trajectory, images = fake_trajectory(
            member, run_id="r1", reward=float(index == 0), versions=[played.train_step] * 2
        )
        if index >= 2:  # 2 and 3 were cut, 1 failed by itself
            object.__setattr__(trajectory, "stop_reason", StopReason.MAX_STEPS)
        played.manager.store(trajectory, images)
    batch = played.manager.claim_batch(played.train_step + 1)
    own = [member.advantage for member in batch.trajectories]
    # Mean 1/4, std 1/2: 1.5 and -0.5; those that were cut count in the mean and carry no blame.
    assert own == pytest.approx([1.5, -0.5, 0.0, 0.0], abs=1e-5)


def test_the_next_task_and_sizes_survive_a_restart(tmp_path):
    settings = {"rollout_rule": "beta", "task_order": "signal", "step_limit": "dynamic"}
    plans = []
    for name, restarts in (("straight", False), ("restarted", True)):
        (tmp_path / name).mkdir()
        played = Run(tmp_path / name, a_is_solved, tasks=["s/a", "s/b", "s/c"], **settings)
        for _ in range(4):
            played.play(6)
            if restarts:
                played.restart()
        plans.append([plan[:2] for plan in played.plans.values()])
        played.manager.close()
    assert plans[0] == plans[1]
    assert {task for task, _ in plans[0]} == {"s/a", "s/b", "s/c"}


def test_signal_prefers_the_task_that_teaches(run):
    played = run(
        lambda task, n: task == "s/a" or n % 2 == 0,
        tasks=["s/a", "s/b"],
        task_order="signal",
        task_floor=0.2,
        min_window=64,
    )
    played.play(60)
    # With four members, Beta(33, 1) of s/a: .11; Beta(33, 33) of s/b: .86; with the floor 19 % to 81 %.
    late = Counter(task for task, _, _ in list(played.plans.values())[20:])
    assert late["s/b"] > 2 * late["s/a"]
    assert late["s/a"] >= 40 * 0.2 / 2 / 2


def test_entropies_are_stored_per_step(run, tmp_path):
    played = run(a_is_solved)
    played.play(1)
    facts = played.manager.trajectories()[0]
    trajectory = played.manager.load_trajectory(facts.trajectory_id)
    conn = sqlite3.connect(tmp_path / "ledger.sqlite")
    rows = conn.execute(
        "SELECT step_index, entropy, num_response_tokens FROM step WHERE trajectory_id = ?",
        (facts.trajectory_id,),
    ).fetchall()
    conn.close()
    assert rows == [
        (step.index, pytest.approx(sum(step.completion.entropies) / 3), 3)
        for step in trajectory.steps
    ]
    assert facts.env_version == "e1"


def test_a_ledger_of_the_first_schema_is_upgraded(run, tmp_path):
    played = run(a_is_solved)
    played.play(2)
    played.manager.close()
    conn = sqlite3.connect(tmp_path / "ledger.sqlite")
    for statement in (
        "ALTER TABLE task_group DROP COLUMN max_steps",
        "ALTER TABLE trajectory DROP COLUMN env_version",
        "DROP TABLE step",
        "DROP TABLE pool_use",
        "UPDATE ledger_meta SET value = '1'",
    ):
        conn.execute(statement)
    conn.commit()
    conn.close()
    played.manager = played.open()
    played.manager.resume_from(played.train_step)
    assert len(played.manager.trajectories()) == 8
    played.play(2)
    conn = sqlite3.connect(tmp_path / "ledger.sqlite")
    assert conn.execute("SELECT value FROM ledger_meta").fetchall() == [("2",)]
    conn.close()


def test_the_highest_entropy_steps_of_a_claimed_group_are_selected(run):
    played = run(lambda task, n: n % 2 == 0, tasks=["s/a"], entropy_share=0.5, num_steps=3)
    batches = []
    claim = played.manager.claim_batch
    played.manager.claim_batch = lambda step: batches.append(claim(step)) or batches[-1]
    played.play(1)
    (batch,) = [batch for batch in batches if batch is not None]
    selected = [keep for member in batch.trajectories for keep in member.selected]
    entropies = [
        sum(step.completion.entropies) / 3
        for member in batch.trajectories
        for step in member.trajectory.steps
    ]
    assert sum(selected) == 6
    kept = [e for e, keep in zip(entropies, selected, strict=True) if keep]
    left = [e for e, keep in zip(entropies, selected, strict=True) if not keep]
    assert min(kept) >= max(left)
