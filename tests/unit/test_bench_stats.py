"""The statistics of the benchmarks, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.stats import MeanOverSeeds, Spread, binned_rates, mean_curve, paired_ratios

FINITE = st.floats(min_value=0.01, max_value=1e6)


def test_spread_is_median_and_range() -> None:
    spread = Spread.of([5.0, 1.0, 3.0, 4.0])
    assert (spread.median, spread.low, spread.high, spread.num_rounds) == (3.5, 1.0, 5.0, 4)
    assert spread.show() == "3.5 (1.0-5.0)"
    assert spread.show(0) == "4 (1-5)"


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_spread_of_nothing_or_of_no_number_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite values"):
        Spread.of(values)


def test_ratios_are_taken_within_rounds() -> None:
    # The machine was twice as slow in the second round: the ratio is the same in both.
    assert paired_ratios([30.0, 15.0], [10.0, 5.0]) == [3.0, 3.0]


@given(st.lists(st.tuples(FINITE, FINITE, FINITE), min_size=1))
def test_a_slow_round_does_not_change_its_ratio(rounds: list[tuple[float, float, float]]) -> None:
    plain = paired_ratios([a for a, _, _ in rounds], [b for _, b, _ in rounds])
    slowed = paired_ratios([a * c for a, _, c in rounds], [b * c for _, b, c in rounds])
    assert slowed == pytest.approx(plain)


def test_rounds_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="do not pair"):
        paired_ratios([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="ratio to nothing"):
        paired_ratios([1.0], [0.0])


def test_mean_over_seeds_has_the_deviation_of_a_single_run() -> None:
    gains = MeanOverSeeds.of([30.0, 33.0, 36.0])
    assert (gains.mean, gains.std, gains.low, gains.high) == (33.0, 3.0, 30.0, 36.0)
    assert MeanOverSeeds.of([7.0]).std == 0.0
    with pytest.raises(ValueError, match="no seeds"):
        MeanOverSeeds.of([])


def test_mean_curve_passes_over_what_is_missing() -> None:
    assert mean_curve([[0.0, None, 0.5], [1.0, 0.25, None]]) == [0.5, 0.25, 0.5]
    assert mean_curve([[None], [None]]) == [None]
    with pytest.raises(ValueError, match="argument 2 is longer"):
        mean_curve([[0.0], [0.0, 1.0]])


def test_bins_hold_the_share_of_successes() -> None:
    at = [0.0, 1.0, 2.5, 3.0, 9.99, 10.0, 12.0]
    successes = [True, False, True, True, False, True, True]
    rates = binned_rates(at, successes, end=10.0, num_bins=4)
    # [0, 2.5) has 1 of 2, [2.5, 5) 2 of 2, [5, 7.5) nothing; what is late counts in the last.
    assert rates == [0.5, 1.0, None, pytest.approx(2 / 3)]


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans())), st.integers(1, 12))
def test_every_episode_is_in_one_bin(episodes: list[tuple[float, bool]], num_bins: int) -> None:
    at = [moment for moment, _ in episodes]
    successes = [success for _, success in episodes]
    counts = [0] * num_bins
    for moment in at:
        counts[min(num_bins - 1, int(moment / 20 * num_bins))] += 1
    rates = binned_rates(at, successes, end=20.0, num_bins=num_bins)
    total = sum(count * (rate or 0.0) for count, rate in zip(counts, rates, strict=True))
    assert total == pytest.approx(sum(successes))
    assert [rate is None for rate in rates] == [count == 0 for count in counts]
