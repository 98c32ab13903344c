"""Hand-worked numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_gui.data.advantages import advantages, step_weights


def test_grpo_over_trajectories_by_hand():
    # mean 0.5, deviations +-0.5, unbiased variance 4 * 0.25 / 3 = 1/3, std 0.57735
    got = advantages([1.0, 0.0, 1.0, 0.0], [1, 2, 3, 4])
    assert got == pytest.approx([0.8660239, -0.8660239, 0.8660239, -0.8660239], abs=1e-6)


def test_without_std_only_the_mean_leaves():
    assert advantages([1.0, 0.25, 0.25], [1, 1, 1], normalize_std=False) == [0.5, -0.25, -0.25]


def test_the_papers_group_over_steps_and_over_trajectories():
    # 2 successes of 8 steps, 6 failures of 28: over steps mean 16/184 = .087, std .283.
    rewards, steps = [1.0] * 2 + [0.0] * 6, [8] * 2 + [28] * 6
    over_steps = advantages(rewards, steps, statistics="step")
    assert over_steps[0] == pytest.approx(3.23, abs=0.005)
    assert over_steps[-1] == pytest.approx(-0.31, abs=0.005)
    # Over trajectories mean .25, std .463.
    over_trajectories = advantages(rewards, steps)
    assert over_trajectories[0] == pytest.approx(1.62, abs=0.005)
    assert over_trajectories[-1] == pytest.approx(-0.54, abs=0.005)


def test_step_statistics_equal_trajectory_statistics_of_repeated_rewards():
    # One trajectory of two steps counts as two of one.
    over_steps = advantages([1.0, 0.0], [2, 1], statistics="step")
    repeated = advantages([1.0, 1.0, 0.0], [1, 1, 1])
    assert over_steps == pytest.approx([repeated[0], repeated[2]])


@pytest.mark.parametrize("statistics", ["trajectory", "step"])
def test_a_group_without_variance_or_of_one_gets_zero(statistics):
    assert advantages([0.3, 0.3], [1, 5], statistics=statistics) == pytest.approx([0.0, 0.0])
    assert advantages([1.0], [4], statistics=statistics) == [0.0]


def test_weights_make_trajectories_equal_or_steps_equal():
    assert step_weights([1, 2, 4]) == [1.0, 0.5, 0.25]
    assert step_weights([1, 2, 4], statistics="step") == [1.0, 1.0, 1.0]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 30)), min_size=2, max_size=16),
    st.sampled_from(["trajectory", "step"]),
    st.booleans(),
)
def test_weighted_advantages_of_a_group_add_up_to_zero(members, statistics, normalize_std):
    rewards, steps = [m[0] for m in members], [m[1] for m in members]
    got = advantages(rewards, steps, statistics=statistics, normalize_std=normalize_std)
    weights = step_weights(steps, statistics=statistics)
    total = sum(a * w * n for a, w, n in zip(got, weights, steps, strict=True))
    assert total == pytest.approx(0.0, abs=1e-7 * sum(steps))
