"""One hand-scripted episode for each way in which an episode ends."""

import asyncio
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_gui.agent.agent import Agent
from dart_gui.config import AgentConfig
from dart_gui.errors import AuthError, ConfigError, ContextLengthError, EnvError, PolicyError
from dart_gui.fakes import EpisodeScript, FakeCluster
from dart_gui.runner.episode import (
    Episode,
    EpisodeLimits,
    run_episode,
    run_leased_episode,
    step_seed,
)
from dart_gui.runner.fakes import (
    Hang,
    ManualClock,
    ScriptedCluster,
    ScriptedEnv,
    ScriptedPolicy,
    plan,
    screenshot,
    settle,
)
from dart_gui.types import Click, Finished, Press, StopReason, Task, TypeText, Wait

CLICK = "Thought: Click OK.\nAction: click(start_box='<|box_start|>(57,103)<|box_end|>')"
FINISHED = "Thought: Done.\nAction: finished(content='done')"
CALL_USER = "Thought: There is no OK.\nAction: call_user()"
GARBAGE = "I would rather not."
TASK = Task(task_id="miniwob/click-test", seed=7)
LIMITS = EpisodeLimits(
    max_steps=4, max_parse_errors=1, timeout_s=120.0, temperature=1.0, max_tokens=64
)


@pytest.fixture
def agent(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280})
    )
    return Agent(tmp_path, AgentConfig())


async def play(agent, env: ScriptedEnv, *replies, limits=LIMITS, clock=None, **policy) -> Episode:
    return await run_episode(
        TASK,
        env=env,
        policy=ScriptedPolicy(replies=list(replies), **policy),
        agent=agent,
        limits=limits,
        seed=5,
        clock=clock or ManualClock(),
        trajectory_id="e0",
    )


async def test_done_by_the_task(agent):
    episode = await play(agent, ScriptedEnv(terminate_after=2, reward=0.5), CLICK)
    assert episode.stop_reason is StopReason.DONE
    assert len(episode.steps) == 2
    assert (episode.evaluation.reward, episode.succeeded) == (0.5, False)
    assert episode.instruction == "Click OK."
    assert episode.message == ""


async def test_done_by_the_agent(agent):
    env = ScriptedEnv(reward=1.0)
    episode = await play(agent, env, CLICK, FINISHED)
    assert episode.stop_reason is StopReason.DONE
    assert episode.steps[-1].actions == [Finished(text="done")]
    assert len(env.actions) == 1  # finished() is not for the environment
    assert episode.succeeded


class ListeningEnv(ScriptedEnv):
    declared = 0

    def declare_infeasible(self) -> None:
        self.declared += 1


@pytest.mark.parametrize(("reply", "declared"), [(CALL_USER, 1), (FINISHED, 0)])
async def test_an_environment_that_asks_hears_that_the_task_cannot_be_done(agent, reply, declared):
    env = ListeningEnv(reward=1.0)
    await play(agent, env, reply)
    assert env.declared == declared


async def test_infeasible_is_worth_what_the_task_says(agent):
    episode = await play(agent, ScriptedEnv(reward=1.0), CALL_USER)
    assert episode.stop_reason is StopReason.INFEASIBLE
    assert episode.evaluation.reward == 1.0


async def test_max_steps(agent):
    episode = await play(agent, ScriptedEnv(reward=0.0), CLICK)
    assert episode.stop_reason is StopReason.MAX_STEPS
    assert [step.index for step in episode.steps] == [0, 1, 2, 3]
    assert episode.evaluation.reward == 0.0


async def test_termination_on_the_last_step_is_done(agent):
    episode = await play(agent, ScriptedEnv(terminate_after=4), CLICK)
    assert episode.stop_reason is StopReason.DONE


async def test_max_tokens(agent):
    episode = await play(agent, ScriptedEnv(reward=0.25), CLICK, ContextLengthError("too long"))
    assert episode.stop_reason is StopReason.MAX_TOKENS
    assert len(episode.steps) == 1
    assert episode.evaluation.reward == 0.25


async def test_an_overflow_before_the_first_step_is_a_failure(agent):
    episode = await play(agent, ScriptedEnv(), ContextLengthError("2100 tokens of 2048"))
    assert episode.stop_reason is StopReason.POLICY_ERROR
    assert episode.evaluation is None
    assert "2100 tokens" in episode.message
    with pytest.raises(ValueError, match="no evaluation"):
        episode.trajectory(plan(1)[0], run_id="r")


async def test_parse_error_over_the_count(agent):
    env = ScriptedEnv(reward=0.0)
    episode = await play(agent, env, GARBAGE, CLICK, GARBAGE)
    assert episode.stop_reason is StopReason.PARSE_ERROR
    assert [bool(step.parse_error) for step in episode.steps] == [True, False, True]
    assert [len(step.actions) for step in episode.steps] == [0, 1, 0]
    assert len(env.actions) == 1
    assert episode.evaluation.reward == 0.0


async def test_a_parse_error_within_the_count_is_shown_to_the_agent(agent):
    policy = ScriptedPolicy(replies=[GARBAGE, CLICK])
    await run_episode(
        TASK,
        env=ScriptedEnv(terminate_after=1),
        policy=policy,
        agent=agent,
        limits=LIMITS,
        seed=5,
        clock=ManualClock(),
        trajectory_id="e0",
    )
    second_prompt = json.dumps(policy.calls[1][0])
    assert "could not be parsed" in second_prompt
    assert GARBAGE in second_prompt


async def test_a_cut_off_reply_is_a_parse_error(agent):
    cut = "Thought: Click OK.\nAction: click(start_box='<|box_start|>(57,"
    episode = await play(agent, ScriptedEnv(reward=0.0), cut, finish_reason="length")
    assert episode.stop_reason is StopReason.PARSE_ERROR
    assert len(episode.steps) == 2


@pytest.mark.parametrize("place", ["reset", "step", "evaluate"])
async def test_env_error(agent, place):
    env = ScriptedEnv(breaks_at=place, terminate_after=1)
    episode = await play(agent, env, CLICK)
    assert episode.stop_reason is StopReason.ENV_ERROR
    assert episode.evaluation is None
    assert episode.message == f"the page crashed in {place}"


@pytest.mark.parametrize("reward", [float("nan"), -0.1, 1.5])
async def test_a_reward_out_of_range_is_an_env_error(agent, reward):
    episode = await play(agent, ScriptedEnv(terminate_after=1, reward=reward), CLICK)
    assert episode.stop_reason is StopReason.ENV_ERROR
    assert "[0, 1]" in episode.message


async def test_policy_error(agent):
    episode = await play(agent, ScriptedEnv(), CLICK, PolicyError("503"))
    assert episode.stop_reason is StopReason.POLICY_ERROR
    assert (episode.evaluation, episode.message, len(episode.steps)) == (None, "503", 1)


@pytest.mark.parametrize("error", [AuthError("bad token"), ConfigError("no such task")])
async def test_what_no_retry_mends_is_raised(agent, error):
    with pytest.raises(type(error)):
        await play(agent, ScriptedEnv(), error)


@pytest.mark.parametrize("place", ["reset", "step", "evaluate"])
async def test_timeout(agent, place):
    clock = ManualClock()
    env = ScriptedEnv(hangs_at=place, terminate_after=1)
    running = asyncio.create_task(play(agent, env, CLICK, clock=clock))
    await clock.advance(119.0)
    assert not running.done()
    await clock.advance(1.0)
    episode = await running
    assert episode.stop_reason is StopReason.TIMEOUT
    assert episode.evaluation is None
    assert episode.ended_at - episode.started_at == 120.0


async def test_a_policy_that_never_answers_times_out(agent):
    clock = ManualClock()
    running = asyncio.create_task(play(agent, ScriptedEnv(), CLICK, Hang(), clock=clock))
    await clock.advance(120.0)
    episode = await running
    assert (episode.stop_reason, len(episode.steps)) == (StopReason.TIMEOUT, 1)


async def test_actions_of_a_reply_run_in_order_until_the_task_ends(agent):
    reply = "Thought: t\nAction: type(content='ann')\n\npress(key='enter')\n\nwait()"
    env = ScriptedEnv(terminate_after=2)
    episode = await play(agent, env, reply)
    assert env.actions == [TypeText(text="ann"), Press(key="enter")]
    assert episode.steps[0].actions == env.actions
    assert episode.stop_reason is StopReason.DONE


async def test_actions_after_finished_are_not_carried_out(agent):
    reply = "Thought: t\nAction: wait()\n\nfinished()\n\nwait()"
    env = ScriptedEnv()
    episode = await play(agent, env, reply)
    assert env.actions == [Wait()]
    assert episode.steps[0].actions == [Wait(), Finished()]


async def test_errors_of_all_actions_of_a_step_are_recorded(agent):
    reply = "Thought: t\nAction: press(key='x1')\n\npress(key='x2')\n\nwait()"
    env = ScriptedEnv(action_errors={0: "no key x1", 1: "no key x2"})
    episode = await play(agent, env, reply, GARBAGE, FINISHED)
    assert [step.action_error for step in episode.steps] == ["no key x1; no key x2", None, None]


async def test_points_are_mapped_to_the_screen(agent):
    env = ScriptedEnv(terminate_after=1)
    await play(agent, env, CLICK)
    # 160 x 210 is shown as 168 x 224, the multiples of 28 next to it.
    (action,) = env.actions
    assert isinstance(action, Click)
    assert action.point.x == pytest.approx(57 * 160 / 168, abs=0.5)
    assert action.point.y == pytest.approx(103 * 210 / 224, abs=0.5)


async def test_what_is_stored_is_what_was_sent(agent):
    episode = await play(agent, ScriptedEnv(terminate_after=3), CLICK)
    expected = {hashlib.sha256(screenshot(n)).hexdigest(): screenshot(n) for n in range(3)}
    assert episode.images == expected  # the screen after the last action was never sent
    named = {name for step in episode.steps for name in step.completion.image_hashes}
    assert named == set(expected)


async def test_seeds_and_sampling_of_the_calls(agent):
    policy = ScriptedPolicy(replies=[CLICK])
    await run_episode(
        TASK,
        env=ScriptedEnv(),
        policy=policy,
        agent=agent,
        limits=LIMITS,
        seed=5,
        clock=ManualClock(),
        trajectory_id="e0",
    )
    assert [call[1].seed for call in policy.calls] == [step_seed(5, n) for n in range(4)]
    assert {(call[1].temperature, call[1].max_tokens, call[2]) for call in policy.calls} == {
        (1.0, 64, "e0")
    }


def test_step_seed_is_stable():
    digest = hashlib.sha256(b"5:0").hexdigest()
    assert step_seed(5, 0) == int(digest[:16], 16) // 2


@given(st.integers(0, 2**62), st.integers(0, 2**62), st.integers(0, 50), st.integers(0, 50))
def test_no_two_calls_share_a_seed(seed_a, seed_b, index_a, index_b):
    same = (seed_a, index_a) == (seed_b, index_b)
    assert (step_seed(seed_a, index_a) == step_seed(seed_b, index_b)) == same
    assert 0 <= step_seed(seed_a, index_a) < 2**63


async def test_trajectory_record(agent):
    episode = await play(agent, ScriptedEnv(terminate_after=2), CLICK, policy_version=3)
    trajectory = episode.trajectory(plan(1)[0], run_id="r")
    assert (trajectory.trajectory_id, trajectory.group_id, trajectory.attempt) == ("e0", "g0", 1)
    assert (trajectory.version_min, trajectory.version_max, trajectory.reward) == (3, 3, 1.0)


async def leased(agent, cluster):
    return await run_leased_episode(
        TASK,
        cluster=cluster,
        policy=ScriptedPolicy(replies=[CLICK]),
        agent=agent,
        limits=LIMITS,
        seed=5,
        clock=ManualClock(),
        trajectory_id="e0",
    )


async def test_a_page_that_breaks_when_it_is_given_back_does_not_undo_the_episode(agent):
    cluster = ScriptedCluster(lambda: ScriptedEnv(terminate_after=1), num_envs=1)
    cluster.breaks_on_return = True
    episode = await leased(agent, cluster)
    assert episode.stop_reason is StopReason.DONE


async def test_a_lease_that_fails_is_a_failed_attempt(agent):
    def broken():
        raise EnvError("no page")

    episode = await leased(agent, ScriptedCluster(broken, num_envs=1))
    assert (episode.stop_reason, episode.message) == (StopReason.ENV_ERROR, "no page")
    assert episode.evaluation is None


async def test_a_cancelled_episode_gives_its_environment_back(agent):
    env = ScriptedEnv(hangs_at="step")
    cluster = ScriptedCluster(lambda: env, num_envs=1)
    running = asyncio.create_task(leased(agent, cluster))
    await settle()
    assert cluster.num_busy == 1
    running.cancel()
    await settle()
    assert running.cancelled()
    assert (cluster.num_busy, env.num_closed) == (0, 1)


@pytest.mark.parametrize(
    ("replies", "script", "stop_reason", "reward"),
    [
        ([CLICK], EpisodeScript(num_steps=2), StopReason.DONE, 1.0),
        (["Action: wait()\n\nwait()\n\nwait()"], EpisodeScript(num_steps=2), StopReason.DONE, 1.0),
        ([CLICK, FINISHED], EpisodeScript(num_steps=3), StopReason.DONE, 0.0),
        ([CALL_USER], EpisodeScript(num_steps=3), StopReason.INFEASIBLE, 0.0),
        ([CLICK], EpisodeScript(num_steps=9), StopReason.MAX_STEPS, 0.0),
        ([CLICK], EpisodeScript(num_steps=3, fail_at=2), StopReason.ENV_ERROR, None),
    ],
)
async def test_keeps_the_rules_of_environments(agent, replies, script, stop_reason, reward):
    """The shared fake refuses what the Env protocol forbids, such as a step after the end."""
    cluster = FakeCluster([script])
    await cluster.start()
    episode = await run_leased_episode(
        TASK,
        cluster=cluster,
        policy=ScriptedPolicy(replies=list(replies)),
        agent=agent,
        limits=LIMITS,
        seed=5,
        clock=ManualClock(),
        trajectory_id="e0",
    )
    assert episode.stop_reason is stop_reason
    assert (episode.evaluation.reward if episode.evaluation else None) == reward
    assert cluster.leased[0].is_closed
