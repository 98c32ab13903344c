"""Every pair of states of every machine, against tables written out here by hand."""

import pytest

from dart_gui.data.states import BatchState, EpisodeState, GroupState, can_move, check_move
from dart_gui.errors import DataError

ALLOWED = {
    ("open", "complete"),
    ("open", "skipped"),
    ("open", "cancelled"),
    ("complete", "claimed"),
    ("claimed", "complete"),
    ("claimed", "trained"),
}
ALLOWED_EPISODE = {
    ("planned", "running"),
    ("running", "stored"),
    ("running", "cancelled"),
    ("running", "planned"),
}
ALLOWED_BATCH = {
    ("claimed", "published"),
    ("claimed", "acknowledged"),
    ("claimed", "returned"),
    ("published", "acknowledged"),
    ("published", "returned"),
}
MACHINES = [(GroupState, ALLOWED), (EpisodeState, ALLOWED_EPISODE), (BatchState, ALLOWED_BATCH)]
PAIRS = [
    (old, new, (old.value, new.value) in allowed)
    for states, allowed in MACHINES
    for old in states
    for new in states
]


@pytest.mark.parametrize(("old", "new", "allowed"), PAIRS)
def test_every_pair(old, new, allowed):
    assert can_move(old, new) is allowed
    if allowed:
        check_move("it", old, new)
    else:
        with pytest.raises(DataError, match=rf"g7 cannot move {old} -> {new}"):
            check_move("g7", old, new)


def test_states_of_different_machines_never_mix():
    assert not can_move(GroupState.CLAIMED, BatchState.RETURNED)
    assert not can_move(EpisodeState.RUNNING, GroupState.CANCELLED)
