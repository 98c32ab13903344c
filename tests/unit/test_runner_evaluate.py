import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_gui.agent.agent import Agent
from dart_gui.config import AgentConfig
from dart_gui.env.suites import EVAL_SEEDS, eval_seed
from dart_gui.errors import ConfigError, EnvError, PolicyError
from dart_gui.runner.episode import EpisodeLimits
from dart_gui.runner.evaluate import SuccessRate, evaluate, pass_at_k, wilson_interval
from dart_gui.runner.fakes import (
    ManualClock,
    ScriptedCluster,
    ScriptedEnv,
    ScriptedPolicy,
    settle,
)
from dart_gui.runner.trials import sampling_seed
from dart_gui.types import Task

CLICK = "Thought: Click OK.\nAction: click(start_box='(57,103)')"
LIMITS = EpisodeLimits(
    max_steps=3, max_parse_errors=1, timeout_s=60.0, temperature=0.0, max_tokens=64
)
TASKS = ["miniwob/click-test", "miniwob/enter-text", "miniwob/click-dialog"]


class TaskEnv(ScriptedEnv):
    """A reward for each task; remembers what was asked for."""

    seen: list  # of all environments of a test
    rewards: dict
    failing: dict  # task id -> attempts that still fail

    async def reset(self, task):
        self.seen.append(task)
        if self.failing.get(task.task_id, 0) > 0:
            self.failing[task.task_id] -= 1
            raise EnvError("no page")
        self.reward = self.rewards[task.task_id]
        return await ScriptedEnv.reset(self, task)


def env_kind(*, rewards=(1.0, 0.0, 0.5), failing=None):
    members = {
        "seen": [],
        "rewards": dict(zip(TASKS, rewards, strict=True)),
        "failing": failing or {},
    }
    return type("Env", (TaskEnv,), members)


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("model")
    (model_dir / "preprocessor_config.json").write_text("{}")
    return Agent(model_dir, AgentConfig())


async def run(agent, kind, *, num_episodes=7, policy=None, on_progress=lambda _: None, tasks=TASKS):
    clock = ManualClock()
    running = asyncio.create_task(
        evaluate(
            tasks=tasks,
            num_episodes=num_episodes,
            cluster=ScriptedCluster(lambda: kind(terminate_after=1), num_envs=2),
            policy=policy or ScriptedPolicy(replies=[CLICK], policy_version=4),
            agent=agent,
            limits=LIMITS,
            clock=clock,
            num_slots=2,
            max_attempts=3,
            eval_seed=eval_seed,
            on_progress=on_progress,
        )
    )
    await clock.advance(30.0)
    await settle()
    return await running


async def test_spreads_the_episodes_evenly_over_held_out_seeds(agent):
    kind = env_kind()
    result = await run(agent, kind)
    # 7 episodes over 3 tasks: 3 each
    expected = [Task(task_id=name, seed=eval_seed(i)) for i in range(3) for name in TASKS]
    assert sorted(kind.seen, key=str) == sorted(expected, key=str)
    assert all(task.seed in EVAL_SEEDS for task in kind.seen)
    assert result.overall.success.num_episodes == 9
    assert [result.by_task[name].success.num_successes for name in TASKS] == [3, 0, 0]
    assert result.overall.success.rate == pytest.approx(3 / 9)
    assert result.overall.mean_reward == pytest.approx(0.5)
    assert result.overall.mean_steps == 1.0
    assert result.overall.stop_reasons == {"done": 9}
    assert (result.version_min, result.version_max) == (4, 4)


async def test_infrastructure_failures_are_retried(agent):
    result = await run(agent, env_kind(failing={TASKS[0]: 2}), num_episodes=3)
    assert result.num_retries == 2
    assert result.overall.num_failed == 0
    assert result.overall.success.num_successes == 1


async def test_failures_that_remain_are_apart_and_in_no_rate(agent):
    result = await run(agent, env_kind(failing={TASKS[0]: 100}), num_episodes=6)
    assert result.num_retries == 4  # two instances, two more tries each
    failed = result.by_task[TASKS[0]]
    assert (failed.num_failed, failed.failures) == (2, {"env_error": 2})
    assert (failed.success.rate, failed.success.num_episodes) == (None, 0)
    assert failed.mean_steps is None
    assert (result.overall.num_failed, result.overall.success.num_episodes) == (2, 4)


async def test_sampling_depends_on_the_instance_alone(agent):
    policies = [ScriptedPolicy(replies=[CLICK]) for _ in range(2)]
    await run(agent, env_kind(), policy=policies[0])
    await run(agent, env_kind(failing={TASKS[1]: 1}), policy=policies[1])
    first, second = ({call[2]: call[1] for call in policy.calls} for policy in policies)
    assert first == second
    assert len({sampling.seed for sampling in first.values()}) == 9
    assert {sampling.temperature for sampling in first.values()} == {0.0}


async def test_progress_is_told(agent):
    told = []
    await run(agent, env_kind(failing={TASKS[1]: 100}), on_progress=told.append)
    assert [progress.num_done for progress in told] == list(range(1, 10))
    assert (told[-1].num_total, told[-1].num_successes, told[-1].num_failed) == (9, 3, 3)


async def test_result_is_json(agent):
    tree = json.loads(json.dumps((await run(agent, env_kind())).to_json()))
    assert tree["by_task"][TASKS[0]]["success"]["num_successes"] == 3


async def test_what_no_retry_mends_is_raised(agent):
    with pytest.raises(ConfigError):
        await run(agent, env_kind(), policy=ScriptedPolicy(replies=[ConfigError("no such task")]))
    with pytest.raises(ConfigError, match="no task"):
        await run(agent, env_kind(), tasks=[])


async def test_a_service_that_is_away_gives_no_rate(agent):
    policy = ScriptedPolicy(replies=[PolicyError("refused")])
    result = await run(agent, env_kind(), policy=policy, num_episodes=3)
    assert result.overall.success.rate is None
    assert result.overall.failures == {"policy_error": 3}
    assert result.version_min is None


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (200, 400, 0.4512, 0.5488),
    ],
)
def test_wilson_interval(successes, episodes, low, high):
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_rate(counts):
    successes, episodes = counts
    low, high = wilson_interval(successes, episodes)
    assert 0.0 <= low <= successes / episodes + 1e-12
    assert successes / episodes - 1e-12 <= high <= 1.0
    mirrored = wilson_interval(episodes - successes, episodes)
    assert mirrored == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("counts", [(0, 0), (-1, 3), (4, 3)])
def test_wilson_interval_refuses(counts):
    with pytest.raises(ValueError, match="no proportion"):
        wilson_interval(*counts)


def test_rate_of_nothing_is_unknown():
    assert SuccessRate.of(0, 0).low is None


def test_sampling_seeds_differ_between_tasks_and_instances():
    tasks = [Task(task_id=name, seed=seed) for name in TASKS for seed in range(50)]
    assert len({sampling_seed(task) for task in tasks}) == 150


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 / 2),  # 1 - C(3,2)/C(4,2) = 1 - 3/6
        (5, 2, 3, 9 / 10),  # 1 - C(3,3)/C(5,3) = 1 - 1/10
        (5, 2, 4, 1.0),  # fewer than 4 failures to choose from
        (10, 3, 5, 1 - 21 / 252),  # 1 - C(7,5)/C(10,5)
        (3, 0, 3, 0.0),
        (3, 3, 1, 1.0),
    ],
)
def test_pass_at_k_by_hand(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 1, 0), (3, 4, 1), (0, 0, 1)])
def test_pass_at_k_of_too_few_is_refused(n, c, k):
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(n, c, k)
