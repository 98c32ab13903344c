"""The state machines of the ledger: closed enums, and tables of the moves that are allowed.

``check_move`` is called before every write of a state, so that a defect shows as an error that
names the move, not as a row in an impossible state.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from dart_gui.errors import DataError


class GroupState(StrEnum):
    OPEN = "open"  # planned; some members are not closed yet
    COMPLETE = "complete"  # ready to be trained
    SKIPPED = "skipped"  # complete, but curation found nothing to learn from; has a reason
    CANCELLED = "cancelled"  # lost too many members to infrastructure; has a reason
    CLAIMED = "claimed"  # in a batch that no durable checkpoint lists yet
    TRAINED = "trained"  # in a batch that a durable checkpoint lists


class EpisodeState(StrEnum):
    PLANNED = "planned"  # waits for a slot
    RUNNING = "running"  # a runner attempts it
    STORED = "stored"  # its trajectory is in the ledger
    CANCELLED = "cancelled"  # every allowed attempt failed; has a reason


class BatchState(StrEnum):
    CLAIMED = "claimed"  # the trainer works on it
    PUBLISHED = "published"  # the weights that it produced are published
    ACKNOWLEDGED = "acknowledged"  # a durable checkpoint lists it
    RETURNED = "returned"  # lost with a crash; its groups went back to the queue


GROUP_MOVES: Mapping[GroupState, frozenset[GroupState]] = {
    GroupState.OPEN: frozenset({GroupState.COMPLETE, GroupState.SKIPPED, GroupState.CANCELLED}),
    GroupState.COMPLETE: frozenset({GroupState.CLAIMED}),
    GroupState.SKIPPED: frozenset(),
    GroupState.CANCELLED: frozenset(),
    GroupState.CLAIMED: frozenset({GroupState.COMPLETE, GroupState.TRAINED}),
    GroupState.TRAINED: frozenset(),
}

EPISODE_MOVES: Mapping[EpisodeState, frozenset[EpisodeState]] = {
    EpisodeState.PLANNED: frozenset({EpisodeState.RUNNING}),
    EpisodeState.RUNNING: frozenset(
        {EpisodeState.STORED, EpisodeState.CANCELLED, EpisodeState.PLANNED}
    ),
    EpisodeState.STORED: frozenset(),
    EpisodeState.CANCELLED: frozenset(),
}

# A checkpoint may be written before the weights of the same step are published, or after.
BATCH_MOVES: Mapping[BatchState, frozenset[BatchState]] = {
    BatchState.CLAIMED: frozenset(
        {BatchState.PUBLISHED, BatchState.ACKNOWLEDGED, BatchState.RETURNED}
    ),
    BatchState.PUBLISHED: frozenset({BatchState.ACKNOWLEDGED, BatchState.RETURNED}),
    BatchState.ACKNOWLEDGED: frozenset(),
    BatchState.RETURNED: frozenset(),
}

State = GroupState | EpisodeState | BatchState


def can_move(old: State, new: State) -> bool:
    """Whether the transition table of their machine allows ``old -> new``."""
    if isinstance(old, GroupState) and isinstance(new, GroupState):
        return new in GROUP_MOVES[old]
    if isinstance(old, EpisodeState) and isinstance(new, EpisodeState):
        return new in EPISODE_MOVES[old]
    if isinstance(old, BatchState) and isinstance(new, BatchState):
        return new in BATCH_MOVES[old]
    return False


def check_move(what: str, old: State, new: State) -> None:
    """Refuse a move that the tables do not allow.

    Raises:
        DataError: naming ``what`` (for example ``episode g000003-01``) and ``old -> new``.
    """
    if not can_move(old, new):
        raise DataError(f"{what} cannot move {old} -> {new}")
