"""Windows and posteriors of success rates, against hand-worked numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_gui.data.rates import Outcome, Posterior, drifted, posterior, success_rate, window


def outcome(success=True, *, version=0, num_steps=3, max_steps=8, env_s=1.0, reward=None):
    return Outcome(
        success=success,
        reward=float(success) if reward is None else reward,
        num_steps=num_steps,
        max_steps=max_steps,
        version=version,
        env_s=env_s,
    )


def outcomes(text, **changes):
    """``"+-"``: newest first, a success and a failure."""
    return [outcome(letter == "+", **changes) for letter in text]


def test_a_window_is_bounded_by_versions_but_never_below_the_minimum():
    past = [outcome(version=v) for v in (20, 19, 11, 10, 2, 1)]
    seen = window(past, latest_version=20, window_versions=10, min_window=1)
    assert [o.version for o in seen] == [20, 19, 11]
    seen = window(past, latest_version=20, window_versions=10, min_window=5)
    assert [o.version for o in seen] == [20, 19, 11, 10, 2]


def test_the_rate_is_the_mean_reward_and_0_without_episodes():
    assert success_rate([outcome(reward=1.0), outcome(reward=0.5)]) == 0.75
    assert success_rate([]) == 0.0


def test_both_outcomes_of_a_uniform_posterior_by_hand():
    # E[p^n] of Beta(1, 1) is 1 / (n + 1): 1 - 2 / (n + 1)
    uniform = Posterior(1.0, 1.0)
    assert [uniform.both_outcomes(n) for n in (1, 2, 3, 9)] == pytest.approx([0, 1 / 3, 0.5, 0.8])
    # Beta(2, 1): E[p^2] = (2/3)(3/4) = 1/2, E[q^2] = (1/3)(2/4) = 1/6
    assert Posterior(2.0, 1.0).both_outcomes(2) == pytest.approx(1 / 3)


def test_a_known_rate_gives_the_binomial():
    # A posterior of a million coins is the coin: 1 - p^n - (1-p)^n
    coin = Posterior(7e5, 3e5)
    assert coin.both_outcomes(4) == pytest.approx(1 - 0.7**4 - 0.3**4, abs=1e-4)


@given(st.floats(0.5, 100), st.floats(0.5, 100), st.integers(1, 30))
def test_both_outcomes_is_a_probability_that_grows_by_less_each_time(a, b, n):
    chances = [Posterior(a, b).both_outcomes(k) for k in (n, n + 1, n + 2)]
    assert all(-1e-9 <= c <= 1 + 1e-9 for c in chances)
    assert chances[0] <= chances[1] + 1e-9
    assert chances[2] - chances[1] <= chances[1] - chances[0] + 1e-9


def test_a_posterior_counts_successes_and_failures():
    assert posterior(outcomes("++-")) == Posterior(3.0, 2.0)
    assert posterior([]) == Posterior(1.0, 1.0)


def test_a_drifted_rate_forgets_the_older_half():
    # 10 of 10 now, 0 of 10 before: pooled .5, error sqrt(.25 * .2) = .224, z = 4.5
    past = outcomes("+" * 10 + "-" * 10)
    assert drifted(past)
    assert posterior(past) == Posterior(11.0, 1.0)
    # 6 of 10 now, 4 of 10 before: z = 0.9
    steady = outcomes("++++++----" + "++++------")
    assert not drifted(steady)
    assert posterior(steady) == Posterior(11.0, 11.0)


def test_too_few_episodes_show_no_drift():
    assert not drifted(outcomes("+" * 7 + "-" * 7))
    assert not drifted(outcomes("+" * 40))
