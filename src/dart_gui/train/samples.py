"""From a curated batch to the sequences that are trained: one sample a step, on the recorded ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dart_gui.data.records import Batch, BatchGroup, TrainTrajectory
from dart_gui.types import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One step of a trajectory. ``[P]`` prompt, ``[R]`` response tokens."""

    trajectory_id: str
    prompt_ids: list[int]  # [P]
    response_ids: list[int]  # [R]
    rollout_logprobs: list[float]  # [R]
    image_hashes: list[str]
    masked_token_ids: list[int]
    temperature: float
    policy_version: int
    advantage: float
    weight: float  # of this step in the loss; with those that are not trained they add up to 1
    staleness: int = 0  # trainer version at consumption - policy version, without shifts
    foreign: bool = False  # no behaviour is known: rollout_logprobs mean nothing

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def samples_of(groups: Sequence[BatchGroup]) -> list[Sample]:
    """Every selected step of every trajectory, the last one included.

    Weights are normalised over all steps, selected or not: leaving steps out must not make the
    others louder.
    """
    total = sum(
        member.weight * len(member.trajectory.steps)
        for group in groups
        for member in group.trajectories
    )
    return [
        _sample(member, step, total)
        for group in groups
        for member in group.trajectories
        for step, selected in zip(member.trajectory.steps, _selection(member), strict=True)
        if selected
    ]


def _selection(member: TrainTrajectory) -> list[bool]:
    return member.selected or [True] * len(member.trajectory.steps)


def _sample(member: TrainTrajectory, step: Step, total: float) -> Sample:
    completion, trajectory = step.completion, member.trajectory
    return Sample(
        trajectory_id=trajectory.trajectory_id,
        prompt_ids=completion.prompt_ids,
        response_ids=completion.response_ids,
        rollout_logprobs=[0.0] * len(completion.response_ids)
        if member.foreign
        else completion.rollout_logprobs,
        image_hashes=completion.image_hashes,
        masked_token_ids=completion.masked_token_ids,
        temperature=completion.sampling.temperature,
        policy_version=completion.policy_version,
        advantage=member.advantage,
        weight=member.weight / total,
        # That of the trajectory is its oldest step's.
        staleness=max(0, member.staleness - (completion.policy_version - trajectory.version_min)),
        foreign=member.foreign,
    )


def microbatches(samples: Sequence[Sample], max_tokens: int) -> Iterator[list[Sample]]:
    """Runs of samples whose padded size (count times the longest) stays within ``max_tokens``.

    Samples that share screenshots stay together (a group's first screens are the same image, and each
    is encoded once a micro-batch), ordered by length within, so that little is padding.
    """
    order = sorted(samples, key=lambda sample: (sample.image_hashes[:1], sample.num_tokens))
    current: list[Sample] = []
    longest = 0
    for sample in order:
        grown = max(longest, sample.num_tokens)
        if current and grown * (len(current) + 1) > max_tokens:
            yield current
            current, grown = [], sample.num_tokens
        current.append(sample)
        longest = grown
    if current:
        yield current


def minibatches(batch: Batch, count: int) -> list[list[Sample]]:
    """The samples of ``count`` optimizer updates; a group is never split over two."""
    return [samples_of(batch.groups[start::count]) for start in range(count)]


def distinct_images(samples: Sequence[Sample]) -> Mapping[str, None]:
    """The hashes of all screenshots, in order of first use."""
    return {name: None for sample in samples for name in sample.image_hashes}
