"""One episode of a foreign program: its calls, its end."""

import pytest

from dart_gui.errors import DataError
from dart_gui.sessions.session import TRANSITIONS, Session, SessionEnd, SessionState
from dart_gui.types import Completion, PlannedEpisode, SamplingParams, StopReason, Task


def session():
    planned = PlannedEpisode(
        episode_id="e", group_id="g", task=Task(task_id="my/task", seed=3), attempt=2, seed=9
    )
    return Session(planned=planned, started_at=1.0, touched_at=1.0)


def completion(text, images=()):
    return Completion(
        text=text,
        prompt_ids=[1],
        response_ids=[2],
        rollout_logprobs=[-0.1],
        entropies=[0.2],
        image_hashes=list(images),
        finish_reason="stop",
        policy_version=4,
        worker_id="w",
        sampling=SamplingParams(temperature=1.0, max_tokens=8, seed=1),
    )


def end(**body):
    return SessionEnd.parse({"reward": 1.0} | body)


def record(item, **body):
    return item.trajectory(end(**body), run_id="r", instruction="do", now=9.0)


def test_steps_are_in_the_order_in_which_the_calls_began():
    item = session()
    first, second, third = (item.begin_call(2.0) for _ in range(3))
    item.add(third, completion("third"), {}, 0.5)
    item.add(first, completion("first", ["h"]), {"h": b"png", "other": b""}, 0.5)
    for _ in range(3):
        item.end_call(3.0)
    assert second == 1  # it failed, and leaves no step
    trajectory = record(item)
    assert [step.completion.text for step in trajectory.steps] == ["first", "third"]
    assert [step.index for step in trajectory.steps] == [0, 1]
    assert (trajectory.trajectory_id, trajectory.attempt, trajectory.success) == ("e", 2, True)
    assert item.images == {"h": b"png"}


def test_a_session_without_calls_or_with_one_under_way_cannot_be_stored():
    item = session()
    with pytest.raises(DataError, match="no model call"):
        record(item)
    index = item.begin_call(1.0)
    item.add(index, completion("x"), {}, 0.1)
    with pytest.raises(DataError, match="under way"):
        record(item)


def test_an_ended_session_takes_no_call():
    item = session()
    item.move(SessionState.ENDING)
    with pytest.raises(DataError, match="takes no model calls"):
        item.begin_call(1.0)
    item.move(SessionState.STORED)
    with pytest.raises(DataError, match="cannot be ending again"):
        item.move(SessionState.ENDING)


def test_each_call_has_a_seed_of_its_own():
    item = session()
    seeds = {item.seed(index) for index in range(100)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert item.seed(5) == session().seed(5)


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ({"reward": None}, "reward"),
        ({"reward": True}, "reward"),
        ({"reward": 1.5}, "reward"),
        ({"reward": float("nan")}, "reward"),
        ({"success": "yes"}, "success"),
        ({"stop_reason": "env_error"}, "stop_reason"),
        ({"stop_reason": []}, "stop_reason"),
    ],
)
def test_an_end_that_makes_no_sense(body, match):
    with pytest.raises(DataError, match=match):
        end(**body)


def test_success_follows_the_reward_unless_it_is_said():
    assert [end(reward=value).success for value in (0, 0.5, 1)] == [False, False, True]
    assert end(reward=0.5, success=True, stop_reason="max_steps") == SessionEnd(
        reward=0.5, success=True, stop_reason=StopReason.MAX_STEPS
    )


def test_every_state_has_its_transitions():
    assert set(TRANSITIONS) == set(SessionState)
