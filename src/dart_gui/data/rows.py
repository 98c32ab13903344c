"""A trajectory as rows of the ledger."""

from __future__ import annotations

from typing import Any

from dart_gui.data.step_level import step_entropy
from dart_gui.types import Trajectory


def step_rows(record: Trajectory) -> list[dict[str, Any]]:
    return [
        {
            "run_id": record.run_id,
            "trajectory_id": record.trajectory_id,
            "step_index": item.index,
            "num_response_tokens": len(item.completion.response_ids),
            "policy_version": item.completion.policy_version,
            "entropy": step_entropy(item),
        }
        for item in record.steps
    ]


def facts_row(record: Trajectory) -> dict[str, Any]:
    return {
        "run_id": record.run_id,
        "trajectory_id": record.trajectory_id,
        "group_id": record.group_id,
        "episode_id": record.trajectory_id,
        "task_id": record.task.task_id,
        "seed": record.task.seed,
        "attempt": record.attempt,
        "stop_reason": record.stop_reason,
        "success": record.success,
        "reward": record.reward,
        "num_steps": len(record.steps),
        "num_response_tokens": sum(len(item.completion.response_ids) for item in record.steps),
        "version_min": record.version_min,
        "version_max": record.version_max,
        "started_at": record.started_at,
        "ended_at": record.ended_at,
        "model_s": sum(item.model_s for item in record.steps),
        "env_s": sum(item.env_s for item in record.steps),
    }
