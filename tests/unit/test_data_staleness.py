"""The ladder: hand-worked cases, and a model of the whole system under random schedules."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_gui.data.staleness import (
    Pacing,
    admits,
    check_consumed,
    check_ladder,
    distance,
    feasible,
    rebase,
)
from dart_gui.errors import DataError

TWO_BY_ONE = Pacing(max_staleness=1, groups_per_step=2)


@pytest.mark.parametrize(
    ("versions", "version", "holds"),
    [
        ([], 7, True),
        ([6, 6], 7, True),  # 6 >= 7 - 1 for k = 0, 1
        ([6, 6, 6], 7, False),  # k = 2 needs 7
        ([7, 6, 6], 7, True),  # order does not matter
        ([5], 7, False),
        ([7, 7, 7, 7], 7, True),
        ([7, 7, 7, 7, 7], 7, False),  # (S + 1) * G = 4 at most
    ],
)
def test_ladder_by_hand(versions, version, holds):
    assert feasible(versions, version, TWO_BY_ONE) is holds


def test_admission_by_hand():
    assert admits([6, 6], 7, 7, TWO_BY_ONE)
    assert not admits([6, 6], 6, 7, TWO_BY_ONE)
    assert not admits([], 5, 7, TWO_BY_ONE)
    on_policy = Pacing(max_staleness=0, groups_per_step=1)
    assert admits([], 3, 3, on_policy)
    assert not admits([3], 3, 3, on_policy)


def test_a_broken_ladder_names_the_first_group_that_is_too_old():
    check_ladder([6, 6, 7], 7, TWO_BY_ONE)
    with pytest.raises(DataError, match=r"group 2 of 3 .* planned at version 6; .* needs 7 with"):
        check_ladder([6, 6, 6], 7, TWO_BY_ONE)


def test_the_bound_is_checked_with_all_numbers():
    check_consumed("g1", ladder=6, oldest=6, version=7, pacing=TWO_BY_ONE)
    with pytest.raises(
        DataError, match=r"staleness 2: trainer version 7, oldest step at version 5"
    ):
        check_consumed("g1", ladder=6, oldest=5, version=7, pacing=TWO_BY_ONE)


@pytest.mark.parametrize(
    ("steps", "sampled", "consumed", "expected"),
    [
        ({4: 4, 5: 5, 6: 6}, 4, 6, 2),  # no resume: the difference of the versions
        ({4: 4, 5: 4}, 4, 4, 0),  # the same weights under two numbers
        ({4: 4, 5: 4, 6: 5}, 4, 5, 1),
        ({4: 4, 5: 5, 6: 2}, 5, 2, 3),  # a resume at 2: three steps back
        ({4: 4, 5: 5, 6: 2, 7: 3}, 5, 3, 4),  # and one forward, on another way
        ({4: 4, 5: 5, 6: 2, 7: 3}, 4, 3, 3),
        ({6: 2, 7: 3}, 6, 3, 1),  # sampled after the resume
        ({}, 9, 3, 0),  # weights that this run never published
    ],
)
def test_distance_is_in_train_steps(steps, sampled, consumed, expected):
    assert distance(steps, sampled, consumed) == expected


pacings = st.builds(Pacing, max_staleness=st.integers(0, 4), groups_per_step=st.integers(1, 4))


@given(st.lists(st.integers(0, 30)), st.integers(0, 40), pacings)
def test_rebase_makes_the_ladder_hold_and_lifts_the_least(versions, version, pacing):
    old = sorted(versions)
    new = rebase(old, version, pacing)
    assert feasible(new, version, pacing)
    assert new == sorted(new)
    for k, (before, after) in enumerate(zip(old, new, strict=True)):
        assert after in (before, pacing.floor(version, k))
        assert after >= before


@dataclass
class System:
    """Pacing alone, with lists for tables: p of open groups, of complete ones, and the versions."""

    pacing: Pacing
    published: int = 0
    unpublished: int = 0
    served: int = 0
    open: list[int] = field(default_factory=list)
    complete: list[int] = field(default_factory=list)

    @property
    def version(self) -> int:
        return self.published + self.unpublished

    def admit(self) -> bool:
        ok = admits([*self.open, *self.complete], self.served, self.version, self.pacing)
        if ok:
            self.open.append(self.served)
        return ok

    def claim(self) -> bool:
        size = self.pacing.groups_per_step
        batch, rest = sorted(self.complete)[:size], sorted(self.complete)[size:]
        if len(batch) < size:
            return False
        if not feasible([*rest, *self.open], self.version + 1, self.pacing):
            return False
        for p in batch:
            check_consumed("g", ladder=p, oldest=p, version=self.version, pacing=self.pacing)
        self.complete, self.unpublished = rest, self.unpublished + 1
        return True


MOVES = ["admit", "admit", "complete", "complete", "leave", "claim", "publish", "serve"]


@settings(max_examples=150, deadline=None)
@given(pacings, st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 999)), max_size=120))
def test_random_schedules_keep_the_bound_and_never_deadlock(pacing, schedule):
    system = System(pacing)
    size = pacing.groups_per_step
    for move, pick in schedule:
        if move == "admit":
            system.admit()
        elif move == "complete" and system.open:  # in any order: stragglers happen
            system.complete.append(system.open.pop(pick % len(system.open)))
        elif move == "leave" and system.open:  # skipped or cancelled
            system.open.pop(pick % len(system.open))
        elif move == "claim":
            system.claim()
        elif move == "publish" and system.unpublished:
            system.published, system.unpublished = system.published + 1, system.unpublished - 1
        elif move == "serve":  # the slowest worker lags by as much as it likes
            system.served += pick % (system.published - system.served + 1)
        groups = [*system.open, *system.complete]
        assert feasible(groups, system.version, pacing)
        assert len(groups) <= (pacing.max_staleness + 1) * size

    # The stragglers end, the trainer publishes, the workers catch up: something can always go on.
    system.complete += system.open
    system.open = []
    while len(system.complete) >= size:
        assert system.claim()
    system.published, system.unpublished = system.version, 0
    system.served = system.published
    assert system.admit()
