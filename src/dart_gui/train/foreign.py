"""Foreign successes: tokenised once, by the renderer of the agent that will be trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dart_gui.errors import DataError
from dart_gui.model.policy_model import PromptRenderer
from dart_gui.types import (
    Action,
    Completion,
    SamplingParams,
    Step,
    StopReason,
    Task,
    Trajectory,
)

WORKER = "foreign"
Message = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignStep:
    """What the agent would have been shown, and what was done."""

    messages: list[Message]  # screenshots by hash
    reply: str
    actions: list[Action]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignEpisode:
    """A success of somebody else, as text."""

    task: Task
    instruction: str
    steps: list[ForeignStep]
    images: dict[str, bytes]  # sha256 -> PNG of every screenshot that the messages name
    reward: float
    policy_version: int | None = None


def foreign_trajectory(renderer: PromptRenderer, episode: ForeignEpisode, name: str) -> Trajectory:
    """The episode on token ids. ``name`` becomes its id.

    Raises:
        DataError: a reply has tokens that the agent may not sample.
        PolicyError: a screenshot cannot be decoded.
    """
    grids = {sha256: renderer.pixels(png).grid for sha256, png in episode.images.items()}
    steps = [
        Step(
            index=index,
            completion=_completion(renderer, step, grids, episode.policy_version or 0),
            actions=step.actions,
        )
        for index, step in enumerate(episode.steps)
    ]
    return Trajectory(
        trajectory_id=name,
        run_id=WORKER,
        group_id=WORKER,
        task=episode.task,
        attempt=1,
        instruction=episode.instruction,
        steps=steps,
        stop_reason=StopReason.DONE,
        reward=episode.reward,
        success=True,
        started_at=0.0,
        ended_at=0.0,
    )


def _completion(
    renderer: PromptRenderer,
    step: ForeignStep,
    grids: Mapping[str, tuple[int, int, int]],
    policy_version: int,
) -> Completion:
    prompt = renderer.render(step.messages, grids)
    response_ids = renderer.reply_ids(step.reply)
    if unspeakable := set(response_ids) & set(renderer.masked_token_ids):
        raise DataError(
            f"a reply has tokens that this agent may not sample ({sorted(unspeakable)[:3]}), and so "
            f"could never be learnt: {step.reply!r:.200}"
        )
    return Completion(
        text=step.reply,
        prompt_ids=prompt.prompt_ids,
        response_ids=response_ids,
        rollout_logprobs=[],
        entropies=[],
        image_hashes=prompt.image_hashes,
        finish_reason="stop",
        policy_version=policy_version,
        worker_id=WORKER,
        sampling=SamplingParams(temperature=1.0, max_tokens=len(response_ids), seed=0),
        masked_token_ids=renderer.masked_token_ids,
        foreign=True,
    )


def as_foreign(trajectory: Trajectory) -> Trajectory:
    """A trajectory of an agent that renders alike: its recorded ids stay, its behaviour is dropped."""
    steps = [
        replace(
            step,
            completion=replace(
                step.completion, rollout_logprobs=[], entropies=[], foreign=True, worker_id=WORKER
            ),
        )
        for step in trajectory.steps
    ]
    return replace(trajectory, steps=steps)


def longest(trajectories: Sequence[Trajectory]) -> int:
    """Tokens of the longest step, prompt and reply together."""
    return max(
        len(step.completion.prompt_ids) + len(step.completion.response_ids)
        for trajectory in trajectories
        for step in trajectory.steps
    )
