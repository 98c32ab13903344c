"""The scheduler on fakes: time moves only when a test moves it."""

import asyncio
import dataclasses
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_gui import config as config_module
from dart_gui import metrics as metrics_module
from dart_gui.agent.agent import Agent
from dart_gui.config import AgentConfig
from dart_gui.errors import AuthError, DataError, PolicyError
from dart_gui.runner.fakes import (
    Hang,
    InlineExecutor,
    ManualClock,
    PlanOnly,
    ScriptedCluster,
    ScriptedEnv,
    ScriptedPolicy,
    plan,
    settle,
)
from dart_gui.runner.scheduler import Scheduler
from dart_gui.types import StopReason

CLICK = "Thought: Click OK.\nAction: click(start_box='(57,103)')"
NUM_SLOTS = 3


class EventLog:
    """In the place of MetricsWriter."""

    def __init__(self):
        self.events = []

    def log(self, event, **values):
        json.dumps(values)
        self.events.append((event, values))

    def of(self, name):
        return [values for event, values in self.events if event == name]


class Rig:
    """A scheduler and its fakes."""

    def __init__(self, agent, data, *, make_env=None, policy=None, num_slots=NUM_SLOTS):
        self.clock = ManualClock()
        self.data = data
        self.policy = policy or ScriptedPolicy(replies=[CLICK])
        self.cluster = ScriptedCluster(
            make_env or (lambda: ScriptedEnv(terminate_after=1)), num_envs=num_slots
        )
        self.metrics = EventLog()
        self.stop = asyncio.Event()
        self.scheduler = Scheduler(
            data=data,
            cluster=self.cluster,
            policy=self.policy,
            agent=agent,
            config=config_module.from_dict(
                {"runner": {"num_slots": num_slots, "max_steps": 2}}, source="test"
            ),
            run_id="r",
            metrics=self.metrics,
            clock=self.clock,
            executor=InlineExecutor(),
        )
        self.running = None

    async def __aenter__(self):
        self.running = asyncio.create_task(self.scheduler.run(self.stop))
        await settle()
        return self

    async def __aexit__(self, *_):
        self.stop.set()
        await self.running


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("model")
    (model_dir / "preprocessor_config.json").write_text("{}")
    return Agent(model_dir, AgentConfig())


async def test_works_off_the_plan(agent):
    data = PlanOnly(plan(7))
    async with Rig(agent, data) as rig:
        await rig.clock.advance(1.0)
    assert sorted(data.stored) == [f"e{n}" for n in range(7)]
    assert rig.cluster.num_leases == 7
    assert {name for t in data.stored.values() for s in t.steps
            for name in s.completion.image_hashes} == set(data.images)  # fmt: skip


async def test_a_free_slot_does_not_wait_for_its_siblings(agent):
    """One episode hangs; the other slots run the whole rest of the plan."""
    envs = iter([ScriptedEnv(hangs_at="step")])
    data = PlanOnly(plan(20))
    async with Rig(agent, data, make_env=lambda: next(envs, ScriptedEnv(terminate_after=1))) as rig:
        await rig.clock.advance(5.0)
        assert len(data.stored) == 19
        assert list(data.running) == ["e0"]
    assert data.running == {}
    assert [episode.episode_id for episode in data.planned] == ["e0"]
    assert data.planned[0].attempt == 1  # stopping burns no attempt


async def test_waits_by_level_for_new_work(agent):
    data = PlanOnly([])
    async with Rig(agent, data) as rig:
        await rig.clock.advance(1.0)
        num_looks = len(data.asked)
        assert 9 <= num_looks <= 12  # one slot looks for all, ten times a second
        data.planned += plan(2)
        await rig.clock.advance(0.2)
        assert len(data.stored) == 2


async def test_tells_the_plan_which_version_is_served(agent):
    data = PlanOnly(plan(1))
    policy = ScriptedPolicy(replies=[CLICK], policy_version=4)
    async with Rig(agent, data, policy=policy) as rig:
        await rig.clock.advance(0.2)
        policy.policy_version = 5
        await rig.clock.advance(1.0)
    assert data.asked[0] == 4
    assert data.asked[-1] == 5


async def test_starts_nothing_while_the_service_is_away(agent):
    data = PlanOnly(plan(3))
    policy = ScriptedPolicy(replies=[CLICK], policy_version=PolicyError("refused"))
    async with Rig(agent, data, policy=policy) as rig:
        await rig.clock.advance(30.0)
        assert data.asked == []
        policy.policy_version = 0
        await rig.clock.advance(1.0)
        assert len(data.stored) == 3


async def test_a_service_that_goes_away_costs_each_running_episode_one_attempt(agent):
    data = PlanOnly(plan(10))
    policy = ScriptedPolicy(replies=[PolicyError("connection refused")])
    async with Rig(agent, data, policy=policy) as rig:
        await rig.clock.advance(0.0)
        policy.policy_version = PolicyError("refused")
        await rig.clock.advance(60.0)
        assert len(data.failures) <= NUM_SLOTS
        policy.policy_version, policy.replies = 0, [CLICK]
        await rig.clock.advance(30.0)
        assert len(data.stored) == 10
    assert data.cancelled == {}


async def test_a_planned_step_limit_ends_the_episode_before_the_runs_own(agent):
    first, second = plan(2)
    first = dataclasses.replace(first, group_size=4, max_steps=1)
    data = PlanOnly([first, second])
    async with Rig(agent, data, make_env=ScriptedEnv) as rig:
        await rig.clock.advance(1.0)
        assert {name: len(t.steps) for name, t in data.stored.items()} == {"e0": 1, "e1": 2}
        assert {t.stop_reason for t in data.stored.values()} == {StopReason.MAX_STEPS}
        logged = {
            e["trajectory_id"]: (e["group_size"], e["max_steps"]) for e in rig.metrics.of("episode")
        }
    assert logged == {"e0": (4, 1), "e1": (None, 2)}


async def test_retries_under_the_bound_then_cancels(agent):
    data = PlanOnly(plan(1), max_attempts=3)
    async with Rig(agent, data, make_env=lambda: ScriptedEnv(breaks_at="reset")) as rig:
        await rig.clock.advance(10.0)
    assert data.failures == [("e0", n, StopReason.ENV_ERROR) for n in (1, 2, 3)]
    assert data.cancelled == {"e0": StopReason.ENV_ERROR}
    failed = rig.metrics.of("episode_failed")
    assert [values["attempt"] for values in failed] == [1, 2, 3]
    assert rig.metrics.of("runner")[-1]["failures"] == {"env_error": 3}


async def test_backs_off_when_everything_fails(agent):
    data = PlanOnly(plan(1000))
    async with Rig(agent, data, make_env=lambda: ScriptedEnv(breaks_at="reset")) as rig:
        await rig.clock.advance(60.0)
        # 4 failures open the breaker (and the two slots under way may fail too); then probes after
        # 0.5, 1, 2, 4, 8, 16, 30 s: six or seven of them within the minute.
        assert 4 <= len(data.failures) <= 4 + NUM_SLOTS - 1 + 7
        assert rig.metrics.of("runner")[-1]["breaker"] == "open"


async def test_recovers_when_it_starts(agent):
    data = PlanOnly(plan(2))
    data.next_episode(0)
    assert len(data.running) == 1
    async with Rig(agent, data) as rig:
        await rig.clock.advance(1.0)
    assert sorted(data.stored) == ["e0", "e1"]


async def test_reports(agent):
    data = PlanOnly(plan(4))
    rewards = iter([1.0, 0.0, 1.0, 0.5])
    async with Rig(
        agent, data, make_env=lambda: ScriptedEnv(terminate_after=1, reward=next(rewards))
    ) as rig:
        await rig.clock.advance(2.5)
    reports = rig.metrics.of("runner")
    assert len(reports) == 2  # one a second
    last = reports[-1]
    assert (last["num_episodes"], last["success_window"], last["num_running"]) == (4, 0.5, 0)
    assert last["env_utilisation"] == 0.0  # by this name the live view and the plots read it
    assert last["episodes_per_s"] == pytest.approx(4 / 2)
    assert last["served_version"] == 0
    # Successes 1, 0, 1, 0 with weights 0.95^3, 0.95^2, 0.95, 1
    assert last["success_ema"] == pytest.approx((0.857375 + 0.95) / 3.709875)
    episodes = {values["trajectory_id"]: values for values in rig.metrics.of("episode")}
    assert episodes["e1"]["reward"] == 0.0
    assert episodes["e1"]["stop_reason"] == "done"
    assert episodes["e1"]["num_steps"] == 1


@pytest.mark.parametrize("error", [AuthError("bad token"), DataError("the ledger is gone")])
async def test_what_no_retry_mends_ends_it(agent, error):
    class Broken(PlanOnly):
        def store(self, trajectory, images):
            raise error

    data = Broken(plan(5))
    rig = Rig(agent, data)
    running = asyncio.create_task(rig.scheduler.run(rig.stop))
    await rig.clock.advance(0.2)
    with pytest.raises(type(error)):
        await running
    assert data.running == {}  # all of it went back
    assert rig.cluster.num_busy == 0


async def test_stops_although_an_environment_does_not_let_go(agent):
    class Stubborn(ScriptedEnv):
        async def close(self):
            await asyncio.get_running_loop().create_future()

    data = PlanOnly(plan(1))
    rig = Rig(agent, data, make_env=lambda: Stubborn(hangs_at="step"))
    running = asyncio.create_task(rig.scheduler.run(rig.stop))
    await rig.clock.advance(0.2)
    assert list(data.running) == ["e0"]
    rig.stop.set()
    await rig.clock.advance(7.0)
    assert not running.done()
    await rig.clock.advance(1.0)
    assert running.done()
    assert len(data.planned) == 1


def _make_random_env(rng):
    kind = rng.random()
    if kind < 0.15:
        return ScriptedEnv(breaks_at=rng.choice(["reset", "step", "evaluate"]), terminate_after=1)
    if kind < 0.2:
        return ScriptedEnv(hangs_at=rng.choice(["reset", "step", "evaluate"]), terminate_after=1)
    return ScriptedEnv(terminate_after=rng.randint(1, 3), reward=rng.random())


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_episodes=st.integers(1, 25),
    num_slots=st.integers(1, 5),
    stop_after_s=st.floats(0.0, 160.0),
)
def test_nothing_vanishes(agent, seed, num_episodes, num_slots, stop_after_s):
    """planned = stored + cancelled + in flight, at any time and after a stop at any time."""

    async def scenario():
        rng = random.Random(seed)
        replies = [
            rng.choices([CLICK, "nonsense", PolicyError("503"), Hang()], [80, 8, 8, 4])[0]
            for _ in range(300)
        ]
        data = PlanOnly(plan(num_episodes))
        rig = Rig(
            agent,
            data,
            make_env=lambda: _make_random_env(rng),
            policy=ScriptedPolicy(replies=replies),
            num_slots=num_slots,
        )
        everything = {episode.episode_id for episode in data.planned}
        async with rig:
            for _ in range(4):
                await rig.clock.advance(stop_after_s / 4)
                _check_conserved(data, everything)
                assert len(data.running) <= num_slots
        _check_conserved(data, everything)
        assert data.running == {}
        assert rig.cluster.num_busy == 0
        assert all(attempt <= 3 for _, attempt, _ in data.failures)

    asyncio.run(scenario())


def _check_conserved(data, everything):
    places = [
        {episode.episode_id for episode in data.planned},
        set(data.running),
        set(data.stored),
        set(data.cancelled),
    ]
    assert set().union(*places) == everything
    assert sum(map(len, places)) == len(everything)


async def test_metrics_file_takes_the_events(agent, tmp_path):
    data = PlanOnly(plan(1))
    rig = Rig(agent, data)
    writer = metrics_module.MetricsWriter(tmp_path / "metrics.jsonl", "runner", rig.clock.now)
    rig.scheduler._metrics = writer
    async with rig:
        await rig.clock.advance(1.0)
    writer.close()
    events = [event["event"] for event in metrics_module.read(tmp_path / "metrics.jsonl")]
    assert sorted(events) == ["episode", "runner"]
