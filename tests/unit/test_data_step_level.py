"""Which steps of a group are trained."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_gui.data.advantages import share_factor
from dart_gui.data.fakes import fake_trajectory
from dart_gui.data.step_level import select_steps, step_entropy
from dart_gui.types import PlannedEpisode, Task


def test_the_entropy_of_a_step_is_the_mean_over_its_response_tokens():
    planned = PlannedEpisode(
        episode_id="e", group_id="g", task=Task(task_id="t", seed=0), attempt=1, seed=0
    )
    trajectory, _ = fake_trajectory(planned, run_id="r", reward=1.0)
    step = trajectory.steps[0]
    assert step_entropy(step) == pytest.approx(sum(step.completion.entropies) / 3)


def test_the_highest_80_percent_of_a_group_by_hand():
    # Ten steps in three trajectories; the two lowest are 0.1 and 0.2, wherever they are.
    entropies = [[0.9, 0.1, 0.5], [0.2, 0.8], [0.3, 0.4, 0.6, 0.7, 1.0]]
    assert select_steps(entropies, 0.8) == [
        [True, False, True],
        [False, True],
        [True, True, True, True, True],
    ]


def test_among_equals_the_earlier_come_first():
    assert select_steps([[0.5, 0.5], [0.5, 0.5]], 0.5) == [[True, True], [False, False]]


def test_a_share_never_selects_nothing():
    assert select_steps([[0.1], [0.2]], 0.01) == [[False], [True]]


groups = st.lists(
    st.lists(st.floats(0, 10, allow_nan=False), min_size=1, max_size=6), min_size=1, max_size=5
)


@given(groups, st.floats(0.01, 1.0))
def test_as_many_as_the_share_and_none_below_a_step_that_is_left_out(entropies, share):
    selected = select_steps(entropies, share)
    flat = [
        (e, s)
        for es, ss in zip(entropies, selected, strict=True)
        for e, s in zip(es, ss, strict=True)
    ]
    kept = [e for e, s in flat if s]
    left = [e for e, s in flat if not s]
    assert len(kept) == max(1, math.ceil(share * len(flat) - 1e-9))
    assert not left or min(kept) >= max(left)


@given(st.floats(0.1, 100), st.floats(0, 100), st.floats(0, 0.99))
def test_borrowed_weight_stays_within_its_share(own, foreign, share):
    factor = share_factor(own=own, foreign=foreign, share=share)
    assert 0 <= factor <= 1
    scaled = factor * foreign
    assert scaled <= share * (own + scaled) + 1e-9
    # and no less than allowed, where it was too much
    assert factor == 1 or scaled == pytest.approx(share * (own + scaled))
