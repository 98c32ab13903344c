"""The scripted environments follow their scripts."""

from __future__ import annotations

import pytest

from dart_gui.errors import EnvError
from dart_gui.fakes import EpisodeScript, FakeClock, FakeCluster, FakeEnv
from dart_gui.types import Click, Evaluation, Point, Press, Task, Wait

TASK = Task(task_id="any", seed=1)


async def test_an_episode_ends_after_its_steps() -> None:
    env = FakeEnv(EpisodeScript(num_steps=2, reward=0.5))
    screens = [await env.reset(TASK), await env.step(Wait()), await env.step(Press(key="a"))]
    assert [screen.terminated for screen in screens] == [False, False, True]
    assert len({screen.screenshot for screen in screens}) == 3
    assert await env.evaluate() == Evaluation(reward=0.5, success=False)
    assert env.actions == (Wait(), Press(key="a"))
    with pytest.raises(RuntimeError, match="after the task terminated"):
        await env.step(Wait())


async def test_a_refused_action_counts_for_nothing() -> None:
    env = FakeEnv(EpisodeScript(num_steps=1))
    await env.reset(TASK)
    assert (await env.step(Click(point=Point(500, 1)))).action_error
    assert env.actions == ()


@pytest.mark.parametrize(("fail_at", "num_good"), [("reset", 0), (1, 1), (2, 2), ("evaluate", 3)])
async def test_it_breaks_where_the_script_says(fail_at: str | int, num_good: int) -> None:
    env = FakeEnv(EpisodeScript(num_steps=2, fail_at=fail_at))  # type: ignore[arg-type]
    calls = [lambda: env.reset(TASK), *[lambda: env.step(Wait())] * 2, env.evaluate]
    for call in calls[:num_good]:
        await call()
    with pytest.raises(EnvError):
        await calls[num_good]()
    with pytest.raises(EnvError, match="broke earlier"):
        await env.evaluate()


async def test_leases_play_the_scripts_in_order() -> None:
    clock = FakeClock()
    scripts = [EpisodeScript(fail_at="reset"), EpisodeScript(num_steps=1)]
    cluster = FakeCluster(scripts, num_envs=2, clock=clock)
    await cluster.start()
    async with cluster.lease() as first, cluster.lease() as second, clock_passes(clock, 5.0):
        with pytest.raises(EnvError):
            await first.reset(TASK)
        await second.reset(TASK)
    async with cluster.lease() as third:
        await third.reset(TASK)
        assert (await third.step(Wait())).terminated
    assert cluster.leased == [first, second, third]
    assert cluster.stats().busy_s == 10.0
    assert cluster.stats().num_replaced == 1


async def test_a_clock_goes_forward_only() -> None:
    clock = FakeClock(10.0)
    clock.advance(2.5)
    await clock.sleep(1.0)
    assert clock() == 13.5
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1.0)


class clock_passes:
    """Seconds that pass at the end of a block."""

    def __init__(self, clock: FakeClock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        self._clock.advance(self._seconds)
