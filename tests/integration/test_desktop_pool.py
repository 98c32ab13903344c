"""The warm pool and the environments over it, with desktops that fail on demand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dart_gui.env.desktop.cluster import DesktopCluster
from dart_gui.env.desktop.env import Pace, picture_size
from dart_gui.env.desktop.pool import DesktopPool
from dart_gui.env.desktop.tasks import TaskFolder
from dart_gui.env.providers.fake import FakeProvider, Fault
from dart_gui.errors import EnvError
from dart_gui.types import Evaluation, Hover, Point, Task, TypeText, Wait

TEXT: dict[str, Any] = {
    "instruction": "Write {word}.",
    "variables": {"word": ["one", "two"]},
    "config": [{"type": "execute", "parameters": {"command": "echo start > a.txt", "shell": True}}],
    "evaluator": {
        "func": "exact_match",
        "result": {"type": "vm_file", "path": "a.txt"},
        "expected": {"type": "rule", "rules": {"expected": "done\n"}},
        "postconfig": [
            {
                "type": "execute",
                "parameters": {
                    "command": "test -e b.txt && echo done > a.txt || true",
                    "shell": True,
                },
            }
        ],
    },
}
TASK = Task(task_id="own/write", seed=1)
PACE = Pace(react_s=0.02, settle_s=0.01, settle_limit_s=1, wait_s=0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def folder(tmp_path: Path) -> TaskFolder:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "write.json").write_text(json.dumps(TEXT))
    failing = TEXT | {"config": [{"type": "execute", "parameters": {"command": "false"}}]}
    (tmp_path / "tasks" / "unset.json").write_text(json.dumps(failing))
    return TaskFolder(tmp_path / "tasks", name="own")


@asynccontextmanager
async def opened(
    provider: FakeProvider, *, max_taken: int = 2, spares: int = 0
) -> AsyncIterator[DesktopPool]:
    async def no_sleep(_: float) -> None:
        await asyncio.sleep(0.01)

    pool = DesktopPool(provider, max_taken=max_taken, spares=spares, sleep=no_sleep)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()
        assert await provider.find() == []


async def test_spares_are_booted_before_they_are_wanted(tmp_path: Path) -> None:
    provider = FakeProvider(tmp_path / "d")
    async with opened(provider, spares=2) as pool:
        await until(lambda: pool.stats().num_ready == 2)
        provider.hold_boot.clear()
        desktop = await pool.take()  # without a boot
        assert pool.stats().num_taken == 1
        provider.hold_boot.set()
        await until(lambda: pool.stats().num_ready == 2)
        await pool.give_back(desktop)
        assert pool.stats().num_taken == 0
        assert desktop.desktop_id not in {found.desktop_id for found in await provider.find()}


async def test_no_desktop_is_given_twice(tmp_path: Path) -> None:
    async with opened(FakeProvider(tmp_path / "d"), spares=1) as pool:
        seen: list[str] = []
        for _ in range(5):
            desktop = await pool.take()
            seen.append(desktop.desktop_id)
            await pool.give_back(desktop)
            await pool.give_back(desktop)  # idempotent
        assert len(set(seen)) == 5


async def test_a_spare_that_died_is_replaced(tmp_path: Path) -> None:
    provider = FakeProvider(tmp_path / "d")
    async with opened(provider, spares=1) as pool:
        await until(lambda: pool.stats().num_ready == 1)
        (dead,) = await provider.find()
        await provider.die(dead.desktop_id)
        desktop = await pool.take()
        assert desktop.desktop_id != dead.desktop_id


async def test_taking_waits_for_a_place(tmp_path: Path) -> None:
    async with opened(FakeProvider(tmp_path / "d"), max_taken=2) as pool:
        first, _ = await pool.take(), await pool.take()
        third = asyncio.create_task(pool.take())
        await asyncio.sleep(0.02)
        assert not third.done()
        await pool.give_back(first)
        await third


async def test_a_wait_that_is_cancelled_costs_no_place(tmp_path: Path) -> None:
    provider = FakeProvider(tmp_path / "d")
    async with opened(provider, max_taken=1) as pool:
        provider.hold_boot.clear()
        waiting = asyncio.create_task(pool.take())
        await until(lambda: pool.stats().num_booting == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        provider.hold_boot.set()
        await pool.give_back(await pool.take())


async def test_a_boot_that_fails_is_an_error_and_costs_no_place(tmp_path: Path) -> None:
    provider = FakeProvider(tmp_path / "d", faults=[Fault.NO_BOOT, Fault.NONE])
    async with opened(provider, max_taken=1) as pool:
        with pytest.raises(EnvError, match="did not boot"):
            await pool.take()
        await pool.take()
        assert pool.stats().num_boot_failures == 1


async def test_spares_that_do_not_boot_are_tried_again(tmp_path: Path) -> None:
    provider = FakeProvider(tmp_path / "d", faults=[Fault.NO_BOOT] * 3 + [Fault.NONE])
    async with opened(provider, spares=1) as pool:
        await until(lambda: pool.stats().num_ready == 1)
        assert pool.stats().num_boot_failures == 3


async def test_a_pool_that_is_closed_gives_nothing(tmp_path: Path) -> None:
    pool = DesktopPool(FakeProvider(tmp_path / "d"), max_taken=1, spares=0)
    with pytest.raises(EnvError, match="not running"):
        await pool.take()
    await pool.start()
    await pool.close()
    await pool.close()
    with pytest.raises(EnvError, match="not running"):
        await pool.take()


# --- environments ------------------------------------------------------------------------------


@asynccontextmanager
async def cluster(
    tmp_path: Path, folder: TaskFolder, faults: Sequence[Fault] = (Fault.NONE,)
) -> AsyncIterator[DesktopCluster]:
    provider = FakeProvider(tmp_path / "d", faults=faults)
    pool = DesktopPool(provider, max_taken=2, spares=0)
    made = DesktopCluster(pool, folder, num_envs=2, pace=PACE)
    await made.start()
    try:
        yield made
    finally:
        await made.close()
        assert await provider.find() == []


async def test_the_end_state_is_what_is_rewarded(tmp_path: Path, folder: TaskFolder) -> None:
    async with cluster(tmp_path, folder) as made:
        for create, reward in ((False, 0.0), (True, 1.0)):
            async with made.lease(TASK) as env:
                observation = await env.reset(TASK)
                assert observation.instruction in ("Write one.", "Write two.")
                assert await env._client.read_file("a.txt") == b"start\n"
                assert (await env.step(TypeText(text="hi"))).screenshot != observation.screenshot
                if create:
                    await env._client.write_file("b.txt", b"")
                assert await env.evaluate() == Evaluation(reward=reward, success=reward == 1)


async def test_a_set_up_that_fails_is_infrastructure(tmp_path: Path, folder: TaskFolder) -> None:
    async with cluster(tmp_path, folder) as made, made.lease() as env:
        with pytest.raises(EnvError, match=r"set-up.*ended with 1"):
            await env.reset(Task(task_id="own/unset", seed=0))


@pytest.mark.parametrize("fault", [Fault.GARBAGE, Fault.HANGS])
async def test_a_desktop_that_goes_wrong_is_infrastructure(
    tmp_path: Path, folder: TaskFolder, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dart_gui.env.desktop.client.ANSWER_S", 0.3)
    async with cluster(tmp_path, folder, [fault, Fault.NONE]) as made:
        async with made.lease() as env:
            await env.reset(TASK)
            with pytest.raises(EnvError):
                await env.step(Hover(point=Point(1, 1)))
            with pytest.raises(EnvError, match="broke earlier"):
                await env.evaluate()
        assert made.stats().num_replaced == 1
        async with made.lease() as env:  # nobody else is touched
            await env.reset(TASK)
            await env.step(Wait())
        assert made.stats().num_replaced == 1
        assert made.stats().num_busy == 0


def test_a_cut_picture_is_no_picture() -> None:
    from dart_gui.env.desktop.fakes import FakeScreen

    png = FakeScreen(width=30, height=20).grab(cursor=True).png()
    assert picture_size(png) == (30, 20)
    for broken in (b"", png[:40], png[:-20], b"GIF89a" + png, png[:60] + b"xx" + png[62:]):
        with pytest.raises(EnvError, match="no PNG"):
            picture_size(broken)
