"""Steps to samples to micro-batches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_gui.data.records import BatchGroup, TrainTrajectory
from dart_gui.train.samples import Sample, microbatches, samples_of
from dart_gui.types import Completion, SamplingParams, Step, StopReason, Task, Trajectory


def make_step(index: int, version: int = 3) -> Step:
    completion = Completion(
        text="x",
        prompt_ids=[1, 2, 3 + index],
        response_ids=[7, 8],
        rollout_logprobs=[-0.5, -0.25],
        entropies=[0.1, 0.2],
        image_hashes=[f"image{index}"],
        finish_reason="stop",
        policy_version=version,
        worker_id="w0",
        sampling=SamplingParams(temperature=0.7, max_tokens=8, seed=index),
        masked_token_ids=[5],
    )
    return Step(index=index, completion=completion, actions=[])


def make_member(name: str, num_steps: int, advantage: float) -> TrainTrajectory:
    trajectory = Trajectory(
        trajectory_id=name,
        run_id="run",
        group_id="group",
        task=Task(task_id="miniwob/click-test", seed=1),
        attempt=1,
        instruction="Click.",
        steps=[make_step(index) for index in range(num_steps)],
        stop_reason=StopReason.DONE,
        reward=1.0,
        success=True,
        started_at=0.0,
        ended_at=1.0,
    )
    return TrainTrajectory(
        trajectory=trajectory, advantage=advantage, weight=1 / num_steps, staleness=0
    )


def test_every_step_trains_on_its_recorded_ids_the_last_one_included():
    members = [make_member("a", 3, 1.0), make_member("b", 1, -1.0)]
    samples = samples_of([BatchGroup(group_id="g", task_id="t", trajectories=members)])
    assert [(s.trajectory_id, s.prompt_ids) for s in samples] == [
        ("a", [1, 2, 3]),
        ("a", [1, 2, 4]),
        ("a", [1, 2, 5]),
        ("b", [1, 2, 3]),
    ]
    assert all(s.response_ids == [7, 8] and s.masked_token_ids == [5] for s in samples)
    assert {s.temperature for s in samples} == {0.7}


def test_trajectories_weigh_the_same_whatever_their_length():
    members = [make_member("a", 4, 1.0), make_member("b", 1, -1.0)]
    samples = samples_of([BatchGroup(group_id="g", task_id="t", trajectories=members)])
    assert [s.weight for s in samples] == pytest.approx([0.125] * 4 + [0.5])
    assert sum(s.weight for s in samples) == pytest.approx(1.0)


def sample_of_length(length: int, image: str) -> Sample:
    return Sample(
        trajectory_id="t",
        prompt_ids=[0] * (length - 1),
        response_ids=[0],
        rollout_logprobs=[0.0],
        image_hashes=[image],
        masked_token_ids=[],
        temperature=1.0,
        policy_version=0,
        advantage=0.0,
        weight=1.0,
    )


@given(
    st.lists(st.tuples(st.integers(2, 100), st.sampled_from("abc")), max_size=60),
    st.integers(100, 500),
)
def test_microbatches_keep_every_sample_once_within_the_budget(shapes, budget):
    samples = [sample_of_length(length, image) for length, image in shapes]
    parts = list(microbatches(samples, budget))
    assert sorted(map(id, samples)) == sorted(id(sample) for part in parts for sample in part)
    assert all(len(part) * max(s.num_tokens for s in part) <= budget for part in parts)


def test_samples_that_share_a_screenshot_stay_together():
    samples = [sample_of_length(10, image) for image in "abababab"]
    parts = list(microbatches(samples, 40))
    assert [{s.image_hashes[0] for s in part} for part in parts] == [{"a"}, {"b"}]
