"""How many attempts, how many steps, which task: hand-worked numbers and properties."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_gui.data.rates import Outcome, Posterior
from dart_gui.data.task_level import (
    TaskPast,
    beta_rollouts,
    is_probe,
    next_task,
    published_rollouts,
    shares,
    step_limit,
)


def outcome(success, *, num_steps=3, max_steps=8, env_s=1.0):
    return Outcome(
        success=success,
        reward=float(success),
        num_steps=num_steps,
        max_steps=max_steps,
        version=0,
        env_s=env_s,
    )


# --- rollout number ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "expected"),
    # The published values: .6 -> 8, .625 -> 7, .7 -> 5, .75 -> 5, .8 -> 4, .875 -> 3, .9 -> 3, 1 -> 2
    [(0.0, 8), (0.59, 8), (0.6, 8), (0.625, 7), (0.7, 5), (0.75, 5), (0.8, 4), (0.9, 3), (1.0, 2)],
)
def test_the_published_rule(rate, expected):
    assert published_rollouts(rate, n_max=8, n_min=1, threshold=0.6) == expected


def test_the_published_rule_stays_within_its_bounds():
    assert published_rollouts(1.0, n_max=8, n_min=3, threshold=0.6) == 3
    assert published_rollouts(0.2, n_max=8, n_min=1, threshold=0.1) == 8  # int(9 / .2 - 7) = 38
    # As its code has it by default: only a rate of 1 shrinks the group.
    assert published_rollouts(0.99, n_max=8, n_min=1, threshold=1.0) == 8


COIN = Posterior(5e5, 5e5)  # 1 - 2 / 2^n: .5, .75, .875, .9375
ALWAYS = Posterior(1e6, 1.0)


def test_attempts_until_the_chance_of_both_outcomes_is_reached():
    assert beta_rollouts({"a": COIN}, n_min=2, n_max=16, target=0.9, budget=16) == {"a": 5}
    assert beta_rollouts({"a": COIN}, n_min=2, n_max=3, target=0.9, budget=16) == {"a": 3}


def test_a_budget_goes_where_it_buys_most():
    # 2 * 4 attempts: all but the least go to the coin, up to the target; the rest remains unspent
    # on the solved task until the coin has enough.
    sizes = beta_rollouts({"coin": COIN, "solved": ALWAYS}, n_min=2, n_max=8, target=0.9, budget=3)
    assert sizes == {"coin": 4, "solved": 2}
    sizes = beta_rollouts(
        {"coin": COIN, "new": Posterior(1, 1)}, n_min=2, n_max=9, target=1, budget=5
    )
    # Gains after n: coin 1/2^n, new 2/((n+1)(n+2)): new is worth more from n = 5 on
    assert sizes == {"coin": 5, "new": 5}


def test_a_budget_below_the_minimum_gives_the_minimum():
    assert beta_rollouts({"a": COIN}, n_min=4, n_max=8, target=0.9, budget=2) == {"a": 4}


posteriors = st.lists(
    st.tuples(st.floats(0.5, 40), st.floats(0.5, 40)).map(lambda ab: Posterior(*ab)),
    min_size=1,
    max_size=5,
)


@given(posteriors, st.integers(2, 4), st.integers(0, 8), st.floats(0.1, 1), st.integers(2, 12))
def test_attempts_respect_bounds_and_budget(found, n_min, more, target, budget):
    named = {f"t{i}": p for i, p in enumerate(found)}
    n_max = n_min + more
    sizes = beta_rollouts(named, n_min=n_min, n_max=n_max, target=target, budget=budget)
    assert all(n_min <= n <= n_max for n in sizes.values())
    assert sum(sizes.values()) <= max(budget, n_min) * len(sizes)
    for name, n in sizes.items():
        assert n == n_min or named[name].both_outcomes(n - 1) < target


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=3))
def test_no_other_division_of_the_budget_gives_more_mixed_groups(pairs):
    named = {f"t{i}": Posterior(a, b) for i, (a, b) in enumerate(pairs)}
    sizes = beta_rollouts(named, n_min=2, n_max=6, target=1.0, budget=4)

    def value(division):
        return sum(p.both_outcomes(n) for p, n in zip(named.values(), division, strict=True))

    best = max(
        value(division)
        for division in itertools.product(range(2, 7), repeat=len(named))
        if sum(division) <= 4 * len(named)
    )
    assert value(sizes.values()) == pytest.approx(best)


# --- step limit ----------------------------------------------------------------------------------

RULE = {"quantile": 0.9, "slack": 2, "floor": 3, "ceiling": 20}


def test_the_limit_is_the_quantile_of_successes_plus_slack():
    # Ten successes of 1..10 steps: the 0.9 quantile is the 9th, 9 + 2; failures do not count.
    past = [outcome(True, num_steps=n, max_steps=20) for n in range(1, 11)]
    past += [outcome(False, num_steps=20, max_steps=20)] * 30
    assert step_limit(past, **RULE) == 11


def test_floor_ceiling_and_too_few_successes():
    assert step_limit([outcome(True, num_steps=1)] * 10, **{**RULE, "slack": 1}) == 3
    assert step_limit([outcome(True, num_steps=19, max_steps=30)] * 10, **RULE) == 20
    assert step_limit([outcome(True, num_steps=1)] * 7, **RULE) == 20
    assert step_limit([], **RULE) == 20


def test_successes_that_press_against_their_limit_raise_it():
    easy = [outcome(True, num_steps=2, max_steps=5)] * 30
    # 4 of 34 successes (12 %) needed all of their 5 steps; the quantile alone is 5 or less.
    pressing = [outcome(True, num_steps=5, max_steps=5)] * 4
    rule = {**RULE, "quantile": 0.5}
    assert step_limit(easy + pressing, **rule) == 7
    assert step_limit(easy + pressing[:1], **rule) == 4


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=60), st.integers(1, 5))
def test_a_limit_is_within_floor_and_ceiling_and_grows_with_slack(past, slack):
    rows = [outcome(good, num_steps=n, max_steps=30) for good, n in past]
    limits = [step_limit(rows, **{**RULE, "slack": s}) for s in (slack, slack + 1)]
    assert RULE["floor"] <= limits[0] <= limits[1] <= RULE["ceiling"]


def test_about_one_group_in_ten_probes_the_ceiling():
    probes = [is_probe(number, seed=0) for number in range(2000)]
    assert 140 < sum(probes) < 260
    assert probes == [is_probe(number, seed=0) for number in range(2000)]


# --- which task next -----------------------------------------------------------------------------


def past(name, good, bad, *, env_s=1.0, last=None):
    rows = [outcome(True, env_s=env_s)] * good + [outcome(False, env_s=env_s)] * bad
    return TaskPast(task_id=name, outcomes=rows, last_number=last)


SIZES = {"a": 2, "b": 2, "c": 2}


def test_shares_by_signal_per_second_with_a_floor():
    # Beta(6, 6) and n = 2: 1 - 2 * (6 * 7) / (12 * 13) = .4615. b takes twice as long, c is solved:
    # Beta(11, 1): 1 - (11 * 12 + 1 * 2) / (12 * 13) = .141
    found = shares(
        [past("a", 5, 5), past("b", 5, 5, env_s=2.0), past("c", 10, 0)], SIZES, floor=0.3
    )
    signals = {"a": 0.4615 / 2, "b": 0.4615 / 4, "c": 0.1410 / 2}
    total = sum(signals.values())
    for name, signal in signals.items():
        assert found[name] == pytest.approx(0.1 + 0.7 * signal / total, abs=1e-3)


@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 20), st.floats(0.01, 60)),
        min_size=1,
        max_size=6,
    ),
    st.floats(0.05, 1.0),
)
def test_shares_are_a_distribution_above_the_floor(rows, floor):
    pasts = [past(f"t{i}", g, b, env_s=s) for i, (g, b, s) in enumerate(rows)]
    found = shares(pasts, {p.task_id: 4 for p in pasts}, floor=floor)
    assert sum(found.values()) == pytest.approx(1.0)
    assert min(found.values()) >= floor / len(rows) - 1e-9


def test_a_draw_is_the_same_after_a_restart_and_no_task_is_forgotten():
    def run(num):
        last = {}
        drawn = []
        for number in range(num):
            pasts = [past(n, g, 5, last=last.get(n)) for n, g in (("a", 5), ("b", 500), ("c", 900))]
            name = next_task(number, pasts, SIZES, floor=0.1, seed=3)
            last[name] = number
            drawn.append(name)
        return drawn

    drawn = run(300)
    assert drawn == run(300)
    for name in "abc":
        places = [i for i, other in enumerate(drawn) if other == name]
        gaps = [b - a for a, b in itertools.pairwise([0, *places])]
        assert max(gaps) <= 3 / 0.1 + 3
    counts = Counter(drawn)
    assert counts["a"] > 5 * counts["c"]
