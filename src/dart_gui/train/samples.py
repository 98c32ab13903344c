"""From a curated batch to the sequences that are trained: one sample a step, on the recorded ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dart_gui.data.records import Batch, BatchGroup


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
    weight: float  # of this step in the loss; the weights of a batch add up to 1

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def samples_of(groups: Sequence[BatchGroup]) -> list[Sample]:
    """Every step of every trajectory, the last one included; weights normalised over the batch."""
    total = sum(
        member.weight * len(member.trajectory.steps)
        for group in groups
        for member in group.trajectories
    )
    return [
        Sample(
            trajectory_id=member.trajectory.trajectory_id,
            prompt_ids=step.completion.prompt_ids,
            response_ids=step.completion.response_ids,
            rollout_logprobs=step.completion.rollout_logprobs,
            image_hashes=step.completion.image_hashes,
            masked_token_ids=step.completion.masked_token_ids,
            temperature=step.completion.sampling.temperature,
            policy_version=step.completion.policy_version,
            advantage=member.advantage,
            weight=member.weight / total,
        )
        for group in groups
        for member in group.trajectories
        for step in member.trajectory.steps
    ]


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
