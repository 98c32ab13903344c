"""What an evaluation while training runs with, and what it refuses to report."""

from __future__ import annotations

from typing import Any

import pytest

from dart_gui.config import Config
from dart_gui.errors import PolicyError
from dart_gui.launch.evaluation import beside_training, check_pinned, eval_event
from dart_gui.launch.plan import EvalJob
from dart_gui.runner.evaluate import EvalResult, SuccessRate, TaskResult
from dart_gui.types import WeightsRef

WEIGHTS = WeightsRef(policy_version=8, path="/runs/r1/pinned/v000008-step-000007")
JOB = EvalJob(phase="during", temperature=1.0, train_step=7, weights=WEIGHTS)


def result(version_min: int | None, version_max: int | None) -> EvalResult:
    overall = TaskResult(
        success=SuccessRate.of(5, 10),
        mean_reward=0.5,
        mean_steps=2.0,
        stop_reasons={},
        num_failed=0,
        failures={},
    )
    return EvalResult(
        overall=overall,
        by_task={},
        temperature=1.0,
        version_min=version_min,
        version_max=version_max,
        num_retries=0,
        wall_s=1.0,
    )


def test_it_has_its_own_worker_and_few_pages() -> None:
    tree: dict[str, Any] = {
        "env": {"num_envs": 40, "num_browsers": 2},
        "runner": {"num_slots": 40},
        "rollout": {"num_workers": 4, "max_unavailable": 2, "port": 9999, "url": "http://x"},
        "eval": {"every_envs": 3, "every_episodes": 24},
    }
    config = beside_training(Config.model_validate(tree), WEIGHTS)
    assert config.model.path == WEIGHTS.path
    assert (config.env.num_envs, config.env.num_browsers, config.runner.num_slots) == (3, 1, 3)
    assert (config.rollout.num_workers, config.rollout.port, config.rollout.url) == (1, 0, "")
    assert config.eval.num_episodes == 24
    # Low priority makes it slow, not broken.
    assert config.rollout.request_timeout_s == 5 * Config().rollout.request_timeout_s
    assert config.runner.episode_timeout_s == 5 * Config().runner.episode_timeout_s
    # What is decoded, and how, is not touched.
    assert config.rollout.temperature == Config().rollout.temperature
    assert config.runner.max_steps == Config().runner.max_steps


def test_the_event_names_the_version() -> None:
    check_pinned(JOB, result(8, 8))
    event = eval_event(JOB, result(8, 8))
    assert (event["phase"], event["policy_version"], event["train_step"]) == ("during", 8, 7)
    assert (event["success_rate"], event["num_episodes"]) == (0.5, 10)


@pytest.mark.parametrize("versions", [(7, 8), (8, 9), (0, 0), (None, None)])
def test_an_answer_of_another_version_is_no_result(versions: tuple[int | None, ...]) -> None:
    with pytest.raises(PolicyError, match="an evaluation of policy version 8 was answered by"):
        check_pinned(JOB, result(*versions))


def test_other_evaluations_may_span_versions() -> None:
    check_pinned(EvalJob(phase="after", temperature=0.0, train_step=7), result(7, 8))
