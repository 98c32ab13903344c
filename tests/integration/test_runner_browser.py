"""The runner with real pages, and with a real ledger."""

import random

import pytest

from dart_gui.agent.agent import Agent
from dart_gui.agent.geometry import Geometry
from dart_gui.agent.grammar import render
from dart_gui.config import AgentConfig, EnvConfig
from dart_gui.env.browser import oracle
from dart_gui.env.browser.cluster import BrowserCluster
from dart_gui.env.suites import eval_seed, get_suite
from dart_gui.runner.clock import SystemClock
from dart_gui.runner.episode import EpisodeLimits, run_episode
from dart_gui.runner.evaluate import evaluate
from dart_gui.runner.fakes import completion
from dart_gui.runner.play import play
from dart_gui.runner.random_policy import RandomPolicy
from dart_gui.types import StopReason, Task

pytestmark = pytest.mark.browser

LIMITS = EpisodeLimits(
    max_steps=8, max_parse_errors=1, timeout_s=60.0, temperature=1.0, max_tokens=64
)


class OraclePolicy:
    """Looks into the page, and answers in the agent's grammar."""

    def __init__(self, env, limits):
        self.env, self.limits = env, limits

    async def complete(self, messages, images, sampling, *, trajectory_id):
        action = await oracle.next_action(self.env)
        text = render("As the oracle says.", [action], Geometry(160, 210, self.limits))
        return completion(text, sampling, image_hashes=list(images))


@pytest.fixture
def agent(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{}")
    return Agent(tmp_path, AgentConfig())


@pytest.fixture
async def cluster():
    cluster = BrowserCluster(EnvConfig(num_envs=2))
    await cluster.start()
    yield cluster
    await cluster.close()


async def test_scripted_solutions_succeed_through_the_episode_loop(agent, cluster):
    """Prompt, grammar, pixel rounding and page together lose nothing."""
    for index, name in enumerate(get_suite("miniwob").default_tasks):
        task = Task(task_id=name, seed=eval_seed(index))
        async with cluster.lease(task) as env:
            episode = await run_episode(
                task,
                env=env,
                policy=OraclePolicy(env, agent.limits),
                agent=agent,
                limits=LIMITS,
                seed=random.Random(index).getrandbits(62),
                clock=SystemClock(),
                trajectory_id=name,
            )
        assert episode.stop_reason is StopReason.DONE, (name, episode.message)
        assert episode.succeeded, name
        assert all(step.action_error is None for step in episode.steps)


async def test_random_clicking_is_a_low_floor(agent, cluster):
    result = await evaluate(
        tasks=get_suite("miniwob").default_tasks,
        num_episodes=16,
        cluster=cluster,
        policy=RandomPolicy(agent.limits),
        agent=agent,
        limits=LIMITS,
        clock=SystemClock(),
        num_slots=2,
        max_attempts=3,
        eval_seed=eval_seed,
    )
    assert result.overall.success.num_episodes == 16
    assert result.overall.num_failed == 0
    assert result.overall.success.rate < 0.5
    assert set(result.overall.stop_reasons) <= {"done", "max_steps"}


async def test_play_saves_real_screenshots(agent, cluster, tmp_path):
    result = await play(
        Task(task_id="miniwob/enter-text", seed=1),
        tmp_path / "out",
        cluster=cluster,
        policy=RandomPolicy(agent.limits),
        agent=agent,
        limits=LIMITS,
        seed=1,
        clock=SystemClock(),
    )
    assert all(path.stat().st_size > 500 for path in result.paths if path.suffix == ".png")
    assert result.episode.instruction in result.report.read_text()
