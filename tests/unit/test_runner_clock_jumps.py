"""A machine's clock that is set, forwards or back, while everything runs: durations, deadlines, rates
and back-offs do not notice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dart_gui import config as config_module
from dart_gui.agent.agent import Agent
from dart_gui.config import AgentConfig
from dart_gui.launch.observe import POLL_EVERY_S, Observer
from dart_gui.launch.progress import MetricsTail
from dart_gui.runner.episode import EpisodeLimits
from dart_gui.runner.evaluate import evaluate
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
JUMPS = [-90_000.0, -1.0, 1.0, 90_000.0]
jumps = pytest.mark.parametrize("jump_s", JUMPS)


class Events:
    def __init__(self) -> None:
        self.of: dict[str, list[dict[str, Any]]] = {}

    def log(self, event: str, **values: Any) -> bool:
        self.of.setdefault(event, []).append(values)
        return True


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    model_dir = tmp_path_factory.mktemp("model")
    (model_dir / "preprocessor_config.json").write_text("{}")
    return Agent(model_dir, AgentConfig())


class Rig:
    def __init__(self, agent: Agent, data: PlanOnly, make_env: Any, policy: Any = None) -> None:
        self.clock = ManualClock()
        self.events = Events()
        self.stop = asyncio.Event()
        self.scheduler = Scheduler(
            data=data,
            cluster=ScriptedCluster(make_env, num_envs=2),
            policy=policy or ScriptedPolicy(replies=[CLICK]),
            agent=agent,
            config=config_module.from_dict(
                {"runner": {"num_slots": 2, "episode_timeout_s": 60}}, source="test"
            ),
            run_id="r",
            metrics=self.events,  # type: ignore[arg-type]
            clock=self.clock,
            executor=InlineExecutor(),
        )

    async def __aenter__(self) -> Rig:
        self.running = asyncio.create_task(self.scheduler.run(self.stop))
        await settle()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        await self.clock.advance(10.0)
        await self.running

    def jump(self, seconds: float) -> None:
        self.clock.set(self.clock.now() + seconds)


@jumps
async def test_a_back_off_ends_when_it_would_have(agent: Agent, jump_s: float) -> None:
    broken = True
    data = PlanOnly(plan(200), max_attempts=100)
    make_env = lambda: ScriptedEnv(terminate_after=1, breaks_at="reset" if broken else "")  # noqa: E731
    async with Rig(agent, data, make_env) as rig:
        await rig.clock.advance(5.0)
        num_failures = len(data.failures)
        rig.jump(jump_s)
        await rig.clock.advance(1.0)
        assert len(data.failures) <= num_failures + 2, "the jump opened the gate"
        broken = False
        await rig.clock.advance(40.0)  # the longest back-off is 30 s
        assert len(data.stored) == 200


@jumps
async def test_a_deadline_is_of_passed_time(agent: Agent, jump_s: float) -> None:
    data = PlanOnly(plan(1), max_attempts=1)
    policy = ScriptedPolicy(replies=[Hang()])
    async with Rig(agent, data, lambda: ScriptedEnv(terminate_after=1), policy) as rig:
        await rig.clock.advance(30.0)
        rig.jump(jump_s)
        await rig.clock.advance(29.0)
        assert data.failures == []
        await rig.clock.advance(2.0)
        assert data.failures == [("e0", 1, StopReason.TIMEOUT)]


@jumps
async def test_durations_and_rates_are_of_passed_time(agent: Agent, jump_s: float) -> None:
    class Jumping(ScriptedEnv):
        async def step(self, action: Any) -> Any:
            await rig.clock.sleep(2.0)
            rig.jump(jump_s)
            return await super().step(action)

    data = PlanOnly(plan(2))
    rig = Rig(agent, data, lambda: Jumping(terminate_after=1))
    async with rig:
        await rig.clock.advance(4.5)
    for trajectory in data.stored.values():
        assert trajectory.ended_at - trajectory.started_at == pytest.approx(2.0)
        assert trajectory.steps[0].env_s == pytest.approx(2.0)
        assert trajectory.steps[0].model_s >= 0.0
    report = rig.events.of["runner"][3]
    assert report["episodes_per_s"] == pytest.approx(2 / 4)
    assert all(0.0 <= each["env_utilisation"] <= 1.0 for each in rig.events.of["runner"])


@jumps
async def test_an_evaluation_takes_the_time_that_it_takes(agent: Agent, jump_s: float) -> None:
    clock = ManualClock()
    limits = EpisodeLimits(
        max_steps=2, max_parse_errors=1, timeout_s=60.0, temperature=1.0, max_tokens=8
    )
    running = asyncio.create_task(
        evaluate(
            tasks=["miniwob/click-test"],
            num_episodes=1,
            cluster=ScriptedCluster(lambda: ScriptedEnv(breaks_at="reset"), num_envs=1),
            policy=ScriptedPolicy(replies=[CLICK]),
            agent=agent,
            limits=limits,
            clock=clock,
            num_slots=1,
            max_attempts=2,
            eval_seed=lambda index: index,
        )
    )
    await settle()
    clock.set(clock.now() + jump_s)
    await clock.advance(1.0)  # the pause before the second attempt
    assert (await running).wall_s == pytest.approx(1.0)


@jumps
def test_the_supervisor_goes_on_looking(tmp_path: Any, jump_s: float) -> None:
    looks: list[float] = []
    observer = Observer(
        MetricsTail(tmp_path / "metrics.jsonl"), read_service=lambda: looks.append(1.0)
    )
    observer.look(1_000_000.0)
    after = 1_000_000.0 + jump_s
    for tick in range(16):
        observer.look(after + tick * POLL_EVERY_S / 4)
    assert 4 <= len(looks) - 1 <= 6
