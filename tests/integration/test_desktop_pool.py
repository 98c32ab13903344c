"""The warm pool and the environments over it, with desktops that fail on demand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.cluster import DesktopCluster
from dart_gui.env.desktop.env import Pace, picture_size
from dart_gui.env.desktop.pool import BACKOFF_S, DesktopPool, DesktopState
from dart_gui.env.desktop.tasks import TaskFolder
from dart_gui.env.providers.fake import FakeProvider, Fault
from dart_gui.env.providers.protocol import Desktop
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


class Naps:
    """Sleeps that last until a test ends them."""

    def __init__(self) -> None:
        self.lengths: list[float] = []
        self._over = asyncio.Event()

    async def __call__(self, length_s: float) -> None:
        self.lengths.append(length_s)
        await self._over.wait()

    def end(self) -> None:
        self._over.set()
        self._over = asyncio.Event()


@pytest.fixture
def folder(tmp_path: Path) -> TaskFolder:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "write.json").write_text(json.dumps(TEXT))
    failing = TEXT | {"config": [{"type": "execute", "parameters": {"command": "false"}}]}
    (tmp_path / "tasks" / "unset.json").write_text(json.dumps(failing))
    return TaskFolder(tmp_path / "tasks", name="own")


@asynccontextmanager
async def opened(
    provider: FakeProvider,
    *,
    max_taken: int = 2,
    spares: int = 0,
    sleep: Callable[[float], Awaitable[None]] | None = None,
) -> AsyncIterator[DesktopPool]:
    async def no_sleep(_: float) -> None:
        await asyncio.sleep(0.01)

    pool = DesktopPool(provider, max_taken=max_taken, spares=spares, sleep=sleep or no_sleep)
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


async def test_a_spare_whose_taker_goes_away_stays_a_spare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is asked whether it still answers."""
    provider = FakeProvider(tmp_path / "d")
    async with opened(provider, spares=1) as pool:
        await until(lambda: pool.stats().num_ready == 1)
        asked = asyncio.Event()

        async def hang(client: GuestClient, *, timeout_s: float) -> None:
            asked.set()
            await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            patch.setattr(GuestClient, "wait_ready", hang)
            taking = asyncio.create_task(pool.take())
            await asked.wait()
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
        (spare,) = await provider.find()
        assert pool.stats().num_ready == 1
        assert await pool.take() == spare


async def test_an_end_that_fails_is_tried_again_and_keeps_its_place(tmp_path: Path) -> None:
    provider, naps = FakeProvider(tmp_path / "d"), Naps()
    async with opened(provider, max_taken=1, sleep=naps) as pool:
        desktop = await pool.take()
        provider.num_failing_ends = 2
        await pool.give_back(desktop)
        second = asyncio.create_task(pool.take())
        for number in (1, 2):
            await until(lambda number=number: len(naps.lengths) == number)  # type: ignore[misc]
            assert (pool.stats().num_ending, second.done()) == (1, False)
            assert await provider.find() == [desktop]
            naps.end()
        fresh = await second
        assert await provider.find() == [fresh]
        assert naps.lengths == [BACKOFF_S, BACKOFF_S]


async def test_a_desktop_whose_end_failed_ends_with_the_pool(tmp_path: Path) -> None:
    provider = FakeProvider(tmp_path / "d")
    async with opened(provider, sleep=Naps()) as pool:
        provider.num_failing_ends = 1
        await pool.give_back(await pool.take())
        assert len(await provider.find()) == 1


async def test_whatever_a_provider_raises_is_a_boot_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, naps = FakeProvider(tmp_path / "d"), Naps()

    async def no_space(_: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(provider, "create", no_space)
        async with opened(provider, max_taken=1, spares=1, sleep=naps) as pool:
            for number in (1, 2):
                await until(lambda number=number: len(naps.lengths) == number)  # type: ignore[misc]
                assert pool.stats().num_boot_failures == number
                naps.end()
            await until(lambda: len(naps.lengths) == 3)
            for _ in range(2):  # it cost no place
                with pytest.raises(EnvError, match="No space left"):
                    await pool.take()


async def test_a_place_that_is_free_goes_to_one_who_still_waits(tmp_path: Path) -> None:
    async with opened(FakeProvider(tmp_path / "d"), max_taken=1) as pool:
        desktop = await pool.take()
        first = asyncio.create_task(pool.take())
        await asyncio.sleep(0)
        second = asyncio.create_task(pool.take())
        await asyncio.sleep(0)
        # The first goes away in the turn in which it is woken.
        free = pool._changed
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pool, "_changed", lambda: (free(), first.cancel()))
            await pool.give_back(desktop)
            await asyncio.gather(first, return_exceptions=True)
        assert first.cancelled()
        async with asyncio.timeout(60):
            await second


EVENTS = ("take", "leave", "give", "die", "stray", "fail", "hold", "release", "nap", "tend", "turn")


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 3)), max_size=25),
    st.lists(st.sampled_from([Fault.NONE, Fault.NO_BOOT]), max_size=6),
)
def test_every_desktop_is_somebodys_and_the_places_add_up(
    events: list[tuple[str, int]], faults: list[Fault]
) -> None:
    with TemporaryDirectory() as folder:
        provider = FakeProvider(Path(folder) / "d", faults=[*faults, Fault.NONE])
        asyncio.run(_play(provider, events))


async def _play(provider: FakeProvider, events: list[tuple[str, int]]) -> None:
    max_taken, spares, naps = 2, 1, Naps()
    async with opened(provider, max_taken=max_taken, spares=spares, sleep=naps) as pool:
        takers: list[asyncio.Task[Desktop]] = []
        strays: set[str] = set()
        for event, number in events:
            taken = [each for each in takers if each.done()]
            if event == "take":
                takers.append(asyncio.create_task(pool.take()))
            elif event == "leave":
                for each in takers[number : number + 1]:
                    each.cancel()
            elif event == "give" and taken:
                takers.remove(taken[0])
                if not taken[0].cancelled() and not taken[0].exception():
                    pool.discard(taken[0].result())
            elif event == "die":
                await die(pool, provider, number)
            elif event == "stray" and provider.hold_boot.is_set() and len(strays) < 2:
                strays.add(f"stray{len(strays)}")
                with suppress(EnvError):
                    await provider.create(f"stray{len(strays) - 1}")
            elif event == "fail":
                provider.num_failing_ends += 1
            elif event in ("hold", "release"):
                provider.hold_boot.set() if event == "release" else provider.hold_boot.clear()
            elif event == "nap":
                naps.end()
            elif event == "tend":
                await pool.tend()
            for _ in range(number):
                await asyncio.sleep(0)
            await _check(pool, provider, takers, strays if event != "tend" else set())
            assert len(pool._known.keys() - strays) <= max_taken + spares
        provider.num_failing_ends = 0
        provider.num_created += 6  # faults are over
        provider.hold_boot.set()
        for each in takers:
            each.cancel()
        for outcome in await asyncio.gather(*takers, return_exceptions=True):
            if isinstance(outcome, Desktop):
                pool.discard(outcome)
        await pool.tend()
        async with asyncio.timeout(60):
            while pool.stats().num_ending or pool.stats().num_ready < spares:
                naps.end()
                await asyncio.sleep(0.001)
            last = [await pool.take() for _ in range(max_taken)]  # every place can be had again
        await _check(pool, provider, [], set(), held=last)


async def die(pool: DesktopPool, provider: FakeProvider, number: int) -> None:
    """Of the desktops that are there the ``number``-th. None is asked meanwhile: asyncio loses a
    connection that comes while its server closes."""
    found = await provider.find()
    if found and all(k.state is not DesktopState.CHECKED for k in pool._known.values()):
        await provider.die(found[number % len(found)].desktop_id)


async def _check(
    pool: DesktopPool,
    provider: FakeProvider,
    takers: list[asyncio.Task[Desktop]],
    strays: set[str],
    held: Sequence[Desktop] = (),
) -> None:
    """What is found is known, but a stray before a tick; what is taken is held by one who asked."""
    found = {desktop.desktop_id for desktop in await provider.find()}
    assert found <= pool._known.keys() | strays
    ended_well = [each for each in takers if each.done() and not each.cancelled()]
    desktops = [each.result() for each in ended_well if not each.exception()] + list(held)
    taken = {k.desktop_id for k in pool._known.values() if k.state is DesktopState.TAKEN}
    assert taken == {desktop.desktop_id for desktop in desktops}


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
