"""The pacing that bounds staleness: pure functions over version numbers.

Symbols: ``S`` = max_staleness, ``G`` = groups_per_step, ``v`` = trainer version, and
``p_0 <= p_1 <= ...`` = the ladder versions of the groups in the system, which are the groups that
are OPEN or COMPLETE. A group's ladder version is the lowest policy version that any worker served
when the group was planned: no step of the group has a lower one, since workers only go forward.

The ladder holds at ``v`` iff for all k::

    p_k >= v - S + floor(k / G)

**Claim.** A batch that is claimed at ``v`` has staleness <= S.

**Proof.** (1) With the ladder at ``v``, every group in the system has ``p_k >= v - S``; so each
step of any group, consumed at ``v``, has staleness ``v - policy_version <= v - p_k <= S``. (2)
Every change keeps the ladder. *Admission* is refused unless the ladder holds with the new group.
*Leaving* (skip, cancel) takes an element out of a sorted list: no index grows and each element
keeps its value, so every condition stays or weakens. *Claiming* takes G groups out and moves ``v``
to ``v + 1``; it is refused unless the ladder of the rest holds at ``v + 1``. *Publishing* turns a
claimed batch into a version, and ``v`` counts claimed batches from the moment of the claim (``v`` =
latest published version + claimed batches that are not published), so it changes nothing.

**Bound.** ``p <= v`` for each group, so index k = (S + 1) * G would need ``p >= v + 1``: at most
(S + 1) * G groups are in the system.

**No deadlock.** Let every group in the system be COMPLETE. If there are at least G, the claim takes
the first G of the ladder, and ``p_(k+G) >= v - S + floor((k+G)/G) = (v+1) - S + floor(k/G)``:
the rest holds at ``v + 1``, the claim succeeds. If there are fewer than G, then all indices, a new
one included, are below G: a new group is admitted as soon as the served version is at least ``v -
S``, which the rolling update brings about.

**Resume.** When a trainer resumes from a checkpoint it publishes its weights under a new number,
and batches come back: version numbers jump without training. :func:`rebase` lifts the ladder
versions by the least amount that makes the ladder hold again; the lift only lets the queue go on.
What is reported as staleness is :func:`distance`, in train steps, which knows of no lift: without a
resume it is ``v - policy_version``. With R batches that came back, at most ``(S + 1 + R) * G`` groups
are in the system at the resume, so the last of them is consumed at most S + R steps after it; and
weights that sampled before it may lie up to R lost steps off the way. So for the groups in the system
at a resume the bound is S + 2R; for those that are admitted afterwards it is S again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dart_gui.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """The two constants of the ladder."""

    max_staleness: int  # S
    groups_per_step: int  # G

    def floor(self, version: int, index: int) -> int:
        """The least ladder version that the ``index``-th oldest group may have at ``version``."""
        return version - self.max_staleness + index // self.groups_per_step


def feasible(versions: Sequence[int], version: int, pacing: Pacing) -> bool:
    """Whether the ladder holds at trainer version ``version``; ``versions`` in any order."""
    return all(p >= pacing.floor(version, k) for k, p in enumerate(sorted(versions)))


def admits(versions: Sequence[int], served: int, version: int, pacing: Pacing) -> bool:
    """Whether one more group may be planned while the lowest served version is ``served``."""
    return feasible([*versions, served], version, pacing)


def rebase(versions: Sequence[int], version: int, pacing: Pacing) -> list[int]:
    """The least lift of ascending ``versions`` with which the ladder holds at ``version``.

    >>> rebase([3, 3, 9], 9, Pacing(max_staleness=2, groups_per_step=2))
    [7, 7, 9]
    """
    return [max(p, pacing.floor(version, k)) for k, p in enumerate(versions)]


def distance(steps: Mapping[int, int], sampled: int, consumed: int) -> int:
    """Train steps between the weights that sampled and those that are trained.

    ``steps`` gives the train step of each published version, of ``sampled`` and newer; ``consumed``
    is that of the weights to train. A resume goes back in train steps: the way leads from the
    sampling weights back to where the two histories part, and from there forward.

    >>> distance({3: 3, 4: 4}, 3, 4)
    1
    >>> distance({3: 3, 4: 4, 5: 2}, 4, 3)  # steps 3 and 4 were lost; 3 was trained again
    3
    """
    parted = min([consumed, *(step for version, step in steps.items() if version >= sampled)])
    return steps.get(sampled, parted) - parted + consumed - parted


_ADVICE = (
    "Admission should have prevented this: all processes of a run need the same data.max_staleness "
    "and train.groups_per_step, and a change of them needs a restart of the trainer"
)


def check_ladder(versions: Sequence[int], version: int, pacing: Pacing) -> None:
    """Raises ``DataError`` where the ladder does not hold: claims would wait for ever."""
    for k, p in enumerate(sorted(versions)):
        if p < pacing.floor(version, k):
            raise DataError(
                f"group {k} of {len(versions)} in the system, oldest first, was planned at version "
                f"{p}; at trainer version {version} it needs {pacing.floor(version, k)} with "
                f"max_staleness {pacing.max_staleness} and groups_per_step "
                f"{pacing.groups_per_step}. {_ADVICE}"
            )


def check_consumed(
    group_id: str, *, ladder: int, oldest: int, version: int, pacing: Pacing
) -> None:
    """Refuse a group consumed at ``version``, whose oldest step has its place at ``oldest``.

    Raises:
        DataError: it is too old; admission should have made that impossible.
    """
    staleness = version - oldest
    if staleness > pacing.max_staleness:
        raise DataError(
            f"group {group_id} would be trained at staleness {staleness}: trainer version "
            f"{version}, oldest step at version {oldest}, group planned at version {ladder}, "
            f"max_staleness {pacing.max_staleness}, groups_per_step {pacing.groups_per_step}. "
            f"{_ADVICE}"
        )
