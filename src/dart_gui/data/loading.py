"""From claimed rows to what is trained: advantages, weights, selected steps, borrowed successes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dart_gui.config import CurationConfig
from dart_gui.data.advantages import advantages, share_factor, step_weights
from dart_gui.data.blobs import BlobStore
from dart_gui.data.claims import Claim, ClaimedGroup, ClaimedTrajectory
from dart_gui.data.pool import ExperiencePool
from dart_gui.data.pool_use import Borrowed
from dart_gui.data.records import Batch, BatchGroup, TrainTrajectory
from dart_gui.data.step_level import select_steps, step_entropy
from dart_gui.errors import DataError
from dart_gui.types import Trajectory


@dataclass(frozen=True, kw_only=True)
class BatchLoader:
    blobs: BlobStore
    pool: ExperiencePool | None
    curation: CurationConfig

    def load(self, train_step: int, claim: Claim) -> Batch:
        """Raises ``DataError`` where a blob is missing or damaged."""
        loaded = [self._group(group) for group in claim.groups]
        return Batch(
            train_step=train_step,
            trainer_version=claim.trainer_version,
            groups=_capped(loaded, self.curation.pool_share),
            staleness_mean=claim.staleness_mean,
            staleness_max=claim.staleness_max,
        )

    def _group(self, group: ClaimedGroup) -> BatchGroup:
        borrowed = [group.borrowed] if group.borrowed is not None else []
        statistics = self.curation.advantage
        compared: list[ClaimedTrajectory | Borrowed] = [*group.trajectories, *borrowed]
        num_steps = [item.num_steps for item in compared]
        credits = advantages(
            [item.reward for item in compared],
            num_steps,
            statistics=statistics,
            normalize_std=self.curation.normalize_std,
        )
        weights = step_weights(num_steps, statistics=statistics)
        members = [
            TrainTrajectory(
                trajectory=self.blobs.trajectory(item.trajectory_id, item.blob_sha256),
                # A failure that the step limit cut short is not held against the policy.
                advantage=max(0.0, advantage) if item.cut else advantage,
                weight=weight,
                staleness=item.staleness,
            )
            for item, advantage, weight in zip(group.trajectories, credits, weights, strict=False)
        ]
        members = self._selected(members)
        for item in borrowed:
            members.append(
                TrainTrajectory(
                    trajectory=self._foreign(item),
                    advantage=max(0.0, credits[-1]),
                    weight=weights[-1] * self.curation.pool_weight,
                    staleness=0,
                    foreign=True,
                )
            )
        return BatchGroup(group_id=group.group_id, task_id=group.task_id, trajectories=members)

    def _selected(self, members: list[TrainTrajectory]) -> list[TrainTrajectory]:
        share = self.curation.entropy_share
        if share >= 1.0:
            return members
        entropies = [[step_entropy(s) for s in member.trajectory.steps] for member in members]
        return [
            replace(member, selected=selected)
            for member, selected in zip(members, select_steps(entropies, share), strict=True)
        ]

    def _foreign(self, item: Borrowed) -> Trajectory:
        if item.source == "run":
            return self.blobs.trajectory(item.entry_id, item.blob_sha256)
        if self.pool is None:
            raise DataError(
                f"a group borrowed {item.entry_id} from an experience pool, and none is configured: "
                "set curation.pool to the folder that this run began with"
            )
        return self.pool.load(item.entry_id, item.blob_sha256)


def _capped(groups: Sequence[BatchGroup], share: float) -> list[BatchGroup]:
    """Scale the borrowed successes down where they exceed their share of the batch's weight."""
    totals = {False: 0.0, True: 0.0}
    for group in groups:
        for member in group.trajectories:
            totals[member.foreign] += member.weight * len(member.trajectory.steps)
    factor = share_factor(own=totals[False], foreign=totals[True], share=share)
    return [
        replace(
            group,
            trajectories=[
                replace(member, weight=member.weight * factor) if member.foreign else member
                for member in group.trajectories
            ],
        )
        for group in groups
    ]
