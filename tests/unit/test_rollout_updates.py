"""Weight updates as jobs: read off the workers, serial, and known after a restart."""

import pytest

from dart_gui.errors import DataError
from dart_gui.rollout.states import WorkerSlot, WorkerState
from dart_gui.rollout.updates import TRANSITIONS, UpdateJob, Updates, UpdateState
from dart_gui.types import WeightsRef


class Bench:
    def __init__(self, count=2, jobs=()):
        self.slots = [WorkerSlot(worker_id=f"w{index}") for index in range(count)]
        for slot in self.slots:
            slot.move(WorkerState.STARTING)
            slot.move(WorkerState.READY)
        self.refused = {}
        self.saved = []
        self.now = 100.0
        self.updates = Updates(
            self.slots,
            refusal=self.refused.get,
            jobs=jobs,
            save=lambda jobs: self.saved.append([job.state.value for job in jobs]),
            now=lambda: self.now,
        )

    def begin(self, version):
        return self.updates.begin(WeightsRef(policy_version=version, path=f"/w/{version}"))

    def load(self, index, version=None):
        slot = self.slots[index]
        slot.move(WorkerState.DRAINING)
        slot.move(WorkerState.LOADING)
        slot.policy_version = slot.policy_version if version is None else version
        slot.move(WorkerState.READY)

    def states(self):
        return [job.state.value for job in self.updates.all()]


def test_a_job_goes_from_waiting_to_done_with_its_workers():
    bench = Bench()
    job = bench.begin(1)
    assert (job.update_id, job.state, job.created_at) == ("update-1", "waiting", 100.0)
    bench.slots[0].move(WorkerState.DRAINING)
    assert bench.states() == ["rolling"]
    bench.slots[0].move(WorkerState.LOADING)
    bench.slots[0].policy_version = 1
    bench.slots[0].move(WorkerState.READY)
    assert bench.states() == ["rolling"]
    bench.now = 107.0
    bench.load(1, 1)
    job = bench.updates.get("update-1")
    assert (job.state, job.ended_at, job.error) == ("done", 107.0, None)
    assert bench.saved == [["waiting"], ["rolling"], ["done"]]
    bench.slots[0].move(WorkerState.DEAD)  # what happens later is not of this job
    assert bench.states() == ["done"]


def test_a_worker_that_is_down_delays_the_end():
    bench = Bench()
    bench.slots[1].move(WorkerState.DEAD)
    bench.begin(1)
    bench.load(0, 1)
    assert bench.states() == ["rolling"]
    bench.slots[1].move(WorkerState.STARTING)
    bench.slots[1].policy_version = 1
    bench.slots[1].move(WorkerState.READY)
    assert bench.states() == ["done"]


def test_a_newer_version_supersedes_one_that_nobody_has_begun():
    bench = Bench(1)
    bench.begin(1)
    bench.begin(2)
    assert bench.states() == ["superseded", "waiting"]
    bench.load(0, 2)
    assert bench.states() == ["superseded", "done"]


def test_one_update_at_a_time_is_rolling():
    bench = Bench()
    bench.begin(1)
    bench.load(0, 1)
    bench.begin(2)
    bench.slots[1].move(WorkerState.DRAINING)
    assert bench.states() == ["rolling", "waiting"]
    bench.slots[1].move(WorkerState.LOADING)
    bench.slots[1].policy_version = 1
    bench.slots[1].move(WorkerState.READY)
    assert bench.states() == ["done", "waiting"]
    for index in range(2):
        bench.load(index, 2)
    assert bench.states() == ["done", "done"]


def test_an_update_is_done_when_every_worker_has_it_or_a_newer_one():
    bench = Bench()
    bench.begin(1)
    bench.load(0, 1)
    bench.begin(2)
    bench.load(1, 2)
    assert bench.states() == ["done", "rolling"]


def test_a_refusal_ends_the_job_with_its_reason():
    bench = Bench()
    bench.begin(1)
    bench.refused[1] = "the file is cut off"
    bench.load(0)
    job = bench.updates.get("update-1")
    assert (job.state, job.error) == ("failed", "the file is cut off")
    bench.refused.clear()
    assert bench.states() == ["failed"]


def test_jobs_survive_a_restart():
    before = Bench()
    before.begin(3)
    trees = [job.to_json() for job in before.updates.all()]
    after = Bench(jobs=[UpdateJob.from_json(tree) for tree in trees])
    assert after.states() == ["waiting"]
    for index in range(2):
        after.load(index, 3)
    assert after.states() == ["done"]
    assert after.updates.get("update-4") is None


@pytest.mark.parametrize("tree", [{}, {"weights": {}}, {"weights": None, "state": "done"}, []])
def test_what_is_no_job_is_a_data_error(tree):
    with pytest.raises(DataError, match="is not an update job"):
        UpdateJob.from_json(tree)


def test_every_state_has_its_transitions_and_ends_are_ends():
    assert set(TRANSITIONS) == set(UpdateState)
    ends = {state for state, after in TRANSITIONS.items() if not after}
    assert ends == {UpdateState.DONE, UpdateState.FAILED, UpdateState.SUPERSEDED}


def test_old_jobs_are_forgotten():
    bench = Bench(1)
    for version in range(1, 130):
        bench.begin(version)
    jobs = bench.updates.all()
    assert (len(jobs), jobs[-1].update_id) == (100, "update-129")
