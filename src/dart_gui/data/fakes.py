"""Scripted trajectories for tests: what a runner would store, without an environment or a model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from dart_gui.data.sampler import stable_hash
from dart_gui.types import (
    Click,
    Completion,
    Finished,
    PlannedEpisode,
    Point,
    SamplingParams,
    Step,
    StopReason,
    Trajectory,
)


def fake_image(name: str) -> tuple[str, bytes]:
    """sha256 and bytes of a "screenshot" that is unique to ``name``."""
    png = b"\x89PNG\r\n\x1a\n" + name.encode()
    return hashlib.sha256(png).hexdigest(), png


def fake_trajectory(
    planned: PlannedEpisode,
    *,
    run_id: str,
    reward: float,
    versions: Sequence[int] = (0,),
    num_prompt_tokens: int = 5,
) -> tuple[Trajectory, dict[str, bytes]]:
    """A trajectory with one step per entry of ``versions``, and its screenshots by sha256.

    The first screenshot belongs to the group (its members see the same first screen), the others
    to the episode. Numbers differ between episodes and repeat between calls.
    """
    images = dict(
        fake_image(planned.group_id if index == 0 else f"{planned.episode_id}/{index}")
        for index in range(len(versions))
    )
    hashes = list(images)
    trajectory = Trajectory(
        trajectory_id=planned.episode_id,
        run_id=run_id,
        group_id=planned.group_id,
        task=planned.task,
        attempt=planned.attempt,
        instruction=f"do {planned.task.task_id}",
        steps=[
            _step(planned, index, version, hashes[: index + 1], num_prompt_tokens)
            for index, version in enumerate(versions)
        ],
        stop_reason=StopReason.DONE,
        reward=reward,
        success=reward >= 1.0,
        started_at=100.0,
        ended_at=100.0 + len(versions),
    )
    return trajectory, images


def _step(
    planned: PlannedEpisode, index: int, version: int, hashes: list[str], num_prompt_tokens: int
) -> Step:
    draw = stable_hash("fake-step", planned.episode_id, index)
    last = Finished(text='done: "ü"\n')
    return Step(
        index=index,
        completion=Completion(
            text="Thought: click",
            prompt_ids=[(draw + i) % 997 for i in range(num_prompt_tokens)],
            response_ids=[draw % 89, draw % 97, 2],
            rollout_logprobs=[-(draw % 101) / 7.0, -1e-9, -0.1],
            entropies=[(draw % 103) / 3.0, 0.5, 0.0],
            image_hashes=hashes,
            finish_reason="stop",
            policy_version=version,
            worker_id="worker-0",
            sampling=SamplingParams(temperature=1.0, max_tokens=64, seed=planned.seed),
            masked_token_ids=[7],
        ),
        actions=[Click(point=Point(draw % 160 + 0.25, 40.0)), last],
        model_s=0.25,
        env_s=0.125,
    )
