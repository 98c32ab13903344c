"""Faults of desktops and of clients: each is counted, nothing leaks, nobody else is touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.cluster import DesktopCluster
from dart_gui.env.desktop.env import Pace
from dart_gui.env.desktop.mini import mini_tasks
from dart_gui.env.desktop.pool import DesktopPool, DesktopSource, DesktopState
from dart_gui.env.providers import processes
from dart_gui.env.providers.fake import FakeProvider, Fault
from dart_gui.env.providers.sandbox import SandboxSpec
from dart_gui.env.providers.xvfb import XvfbProvider
from dart_gui.env.server.client import ServerSource
from dart_gui.env.server.leases import QuotaError
from dart_gui.errors import DataError, EnvError, SetupError
from dart_gui.files import write_whole
from dart_gui.types import Click, Hover, Point, Task
from tests.integration.test_desktop_pool import Naps, die
from tests.integration.test_env_server import ANN, BOB, ROOT, Running, call, lease, serving, until

TASKS = mini_tasks()
TASK = Task(task_id="desktop-mini/make-folder", seed=1)
PACE = Pace(react_s=0.1, settle_s=0.1, settle_limit_s=10)


async def counters(server: Running) -> dict[str, int]:
    """Of /metrics: those that are not 0."""
    async with server.as_(ROOT) as root, root.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    found = [line.removeprefix("dart_env_").rsplit(" ", 1) for line in lines if line[0] != "#"]
    return {name: int(value) for name, value in found if "_total" in name and value != "0"}


async def test_every_end_is_counted(tmp_path: Path) -> None:
    faults = (Fault.NONE, Fault.NONE, Fault.NO_BOOT, Fault.NONE)
    async with serving(tmp_path, faults=faults) as server, server.as_(ANN) as ann:
        died, vanished = await lease(ann), await lease(ann, ttl_s=30)
        assert (await call(ann, "POST", "/v1/leases", {"wait_s": 60}))[0] == 503
        async with server.as_(BOB) as bob:
            kept = await lease(bob, ttl_s=3600)
            assert (await call(bob, "POST", "/v1/leases", {}))[0] == 429
            gone = (await call(ann, "GET", f"/v1/leases/{died}"))[1]["desktop_id"]
            await server.provider.destroy(gone)
            server.clock.advance(31)
            await server.reap()
            assert await counters(server) == {
                'leases_ended_total{reason="lost"}': 1,
                'leases_ended_total{reason="expired"}': 1,
                'leases_ended_total{reason="boot_failed"}': 1,
                "boot_failures_total": 1,
                "quota_refusals_total": 1,
            }
            assert (await call(ann, "GET", f"/v1/leases/{vanished}"))[1]["reason"] == "expired"
            assert (await call(bob, "GET", f"/v1/leases/{kept}/guest/health"))[0] == 200
            assert len(await server.provider.find()) == 1


async def test_a_spare_that_dies_is_replaced_by_a_tick(tmp_path: Path) -> None:
    """Before anybody takes it, and it is not said to be ready."""
    async with serving(tmp_path, spares=2) as server:
        await until(lambda: server.service.status().num_ready == 2)
        for desktop in (before := await server.provider.find()):
            await server.provider.die(desktop.desktop_id)
        server.provider.hold_boot.clear()
        await server.reap()
        assert server.service.status().num_ready == 0
        server.provider.hold_boot.set()
        await until(lambda: server.service.status().num_ready == 2)
        assert not {one.desktop_id for one in before} & {
            one.desktop_id for one in await server.provider.find()
        }


async def test_a_tick_ends_what_is_nobodys_and_leaves_what_boots(tmp_path: Path) -> None:
    async with serving(tmp_path, spares=1) as server, server.as_(ANN) as ann:
        await until(lambda: server.service.status().num_ready == 1)
        await lease(ann)
        await until(lambda: server.service.status().num_ready == 1)
        fine = await server.provider.find()
        await server.provider.create("stray")
        server.provider.hold_boot.clear()
        _, starting = await call(ann, "POST", "/v1/leases", {})
        await until(lambda: server.service.status().num_booting == 1)
        for _ in range(2):
            await server.reap()
        assert await server.provider.find() == fine
        assert (await counters(server)) == {"orphans_total": 1}
        server.provider.hold_boot.set()
        path = f"/v1/leases/{starting['lease_id']}?wait_s=60"
        assert (await call(ann, "GET", path))[1]["state"] == "running"


async def test_a_desktop_that_does_not_end_keeps_its_place(tmp_path: Path) -> None:
    over = asyncio.Event()

    async def nap(_: float) -> None:
        await over.wait()
        await asyncio.sleep(0.01)

    async with serving(tmp_path, desktops=1, sleep=nap) as server, server.as_(ANN) as ann:
        first = await lease(ann)
        server.provider.num_failing_ends = 1
        assert (await call(ann, "DELETE", f"/v1/leases/{first}"))[0] == 200
        _, waiting = await call(ann, "POST", "/v1/leases", {"wait_s": 0.05})
        status = server.service.status()
        assert (waiting["state"], status.num_ending) == ("starting", 1)
        assert len(await server.provider.find()) == 1
        over.set()
        path = f"/v1/leases/{waiting['lease_id']}?wait_s=60"
        assert (await call(ann, "GET", path))[1]["state"] == "running"
        assert len(await server.provider.find()) == 1


async def test_a_provider_that_raises_anything_is_a_boot_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_space(_: str) -> None:
        raise OSError(28, "No space left on device")

    async with serving(tmp_path) as server, server.as_(ANN) as ann:
        monkeypatch.setattr(server.provider, "create", no_space)
        status, answer = await call(ann, "POST", "/v1/leases", {"wait_s": 60})
        assert (status, answer["reason"]) == (503, "boot_failed")
        assert "No space left" in answer["message"]


async def test_what_the_system_refuses_is_the_desktops_error(tmp_path: Path) -> None:
    provider = XvfbProvider(tmp_path / "missing")
    with pytest.raises(EnvError, match=r"starting the desktop one: FileNotFoundError.*missing"):
        await provider.create("one")
    assert await provider.find() == []


async def test_a_full_disk_keeps_no_desktop_and_is_caught_up_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise DataError("the registry cannot be written: No space left on device")

    provider = FakeProvider(tmp_path / "d")
    async with serving(tmp_path, provider=provider, keep=True) as server, server.as_(ANN) as ann:
        before = await lease(ann)
        with monkeypatch.context() as patch:
            patch.setattr("dart_gui.env.server.registry.write_whole", full)
            kept = await lease(ann)
            assert (await call(ann, "DELETE", f"/v1/leases/{before}"))[0] == 200
            await server.reap()
            _, status = await call(ann, "GET", "/v1/status")
            assert "No space left" in status["warnings"][-1]
        (left,) = await provider.find()
        await server.reap()
        assert "No space left" not in " ".join(server.service.status().warnings)
    async with serving(tmp_path, provider=provider) as server, server.as_(ANN) as ann:
        assert (await call(ann, "GET", f"/v1/leases/{kept}"))[1]["desktop_id"] == left.desktop_id
        assert await provider.find() == [left]


async def test_every_error_that_is_explained_is_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise SetupError("the machine lacks something")

    async with serving(tmp_path) as server, server.as_(ANN) as ann:
        monkeypatch.setattr(server.service, "status", broken)
        status, answer = await call(ann, "GET", "/v1/status")
        assert (status, answer) == (500, {"error": "the machine lacks something"})


async def test_ticks_go_on_where_the_provider_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, over = asyncio.Event(), asyncio.Event()

    async def too_many() -> None:
        looked.set()
        raise OSError(24, "Too many open files")

    async def nap(_: float) -> None:
        await over.wait()
        await asyncio.sleep(0.01)

    async with serving(tmp_path, sleep=nap) as server, server.as_(ANN) as ann:
        await lease(ann, ttl_s=5)
        with monkeypatch.context() as patch:
            patch.setattr(server.provider, "find", too_many)
            over.set()
            await looked.wait()
            looked.clear()
            await looked.wait()
        server.clock.advance(6)
        await until(lambda: server.service.status().num_ended["expired"] == 1)
        await until(lambda: server.service.status().num_ending == 0)
        assert await server.provider.find() == []


EVENTS = ("open", "release", "late", "die", "stray", "fail", "full", "nap", "tick", "turn")


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 3)), max_size=25))
def test_every_desktop_boots_or_is_a_spare_or_leased_or_ends(events: list[tuple[str, int]]) -> None:
    """Whatever happens between the start and the stop, but a stray before the next tick."""
    with TemporaryDirectory() as folder:
        asyncio.run(_happen(Path(folder), events))


async def _happen(folder: Path, events: list[tuple[str, int]]) -> None:
    naps, strays, is_full = Naps(), set[str](), False

    def write(*args: Any, **kwargs: Any) -> None:
        if is_full:
            raise DataError("No space left on device")
        write_whole(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dart_gui.env.server.registry.write_whole", write)
        async with serving(folder, desktops=2, spares=1, sleep=naps) as server:
            service, provider = server.service, server.provider
            for event, number in events:
                live = service.live()
                if event == "open":
                    with suppress(QuotaError):
                        service.open(ANN, ttl_s=10)
                elif event == "release" and live:
                    leaving = live[number % len(live)].lease_id
                    await service.release(leaving, ANN)
                elif event == "late":
                    server.clock.advance(4 * number)
                elif event == "die":
                    await die(service._pool, provider, number)
                elif event == "stray":
                    strays.add(f"stray{provider.num_created}")
                    await provider.create(f"stray{provider.num_created}")
                elif event == "fail":
                    provider.num_failing_ends += 1
                elif event == "full":
                    is_full = not is_full
                elif event == "nap":
                    naps.end()  # which may be a tick, too
                elif event == "tick":
                    await service.reap()
                    strays = set()
                for _ in range(number):
                    await asyncio.sleep(0)
                known = service._pool._known
                assert {one.desktop_id for one in await provider.find()} <= known.keys() | strays
                taken = {k.desktop_id for k in known.values() if k.state is DesktopState.TAKEN}
                leased = {lease.desktop_id for lease in service.live() if lease.desktop_id}
                assert taken == leased
            provider.num_failing_ends, is_full = 0, False
            await service.reap()
    assert await provider.find() == []


async def test_an_end_that_hangs_holds_up_no_other(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.as_(ANN) as ann, server.as_(BOB) as bob:
        for _ in range(3):
            await lease(ann, ttl_s=5)
        await lease(bob, ttl_s=50)
        server.provider.hold_end.clear()
        server.clock.advance(6)
        await server.service.reap()
        status = server.service.status()
        assert (status.num_leased, status.num_ending) == (1, 3)
        server.clock.advance(50)
        await server.service.reap()
        assert server.service.status().num_ended["expired"] == 4
        server.provider.hold_end.set()
        await until(lambda: server.service.status().num_ending == 0)
        assert await server.provider.find() == []


async def test_a_stopped_server_ends_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, spares=1) as server, server.as_(ANN) as ann:
        for _ in range(2):
            await lease(ann)
        await until(lambda: server.service.status().num_ready == 1)
        together(server, 3, monkeypatch)
    assert await server.provider.find() == []


def together(server: Running, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on so many desktops end at once, or none."""
    barrier, destroy = asyncio.Barrier(number), server.provider.destroy

    async def destroyed(desktop_id: str) -> None:
        async with asyncio.timeout(60):
            await barrier.wait()
        await destroy(desktop_id)

    monkeypatch.setattr(server.provider, "destroy", destroyed)


@pytest.mark.parametrize("fault", [Fault.GARBAGE, Fault.HANGS])
async def test_a_desktop_behind_a_server_goes_wrong(
    tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, faults=(fault, Fault.NONE)) as server, server.as_(BOB) as bob:
        async with opened(ServerSource([server.url], ANN.token)) as cluster:
            async with cluster.lease() as env:
                kept = await lease(bob)
                monkeypatch.setattr("dart_gui.env.desktop.client.ANSWER_S", 1.0)
                with pytest.raises(EnvError):
                    await env._guard(_use(env._client))
            assert cluster.stats().num_replaced == 1
            assert (await counters(server)) == {'leases_ended_total{reason="released"}': 1}
            assert (await call(bob, "GET", f"/v1/leases/{kept}/guest/health"))[0] == 200
        (left,) = await server.provider.find()
        assert (await call(bob, "GET", f"/v1/leases/{kept}"))[1]["desktop_id"] == left.desktop_id


async def _use(client: GuestClient) -> None:
    from dart_gui.env.desktop.env import picture_size

    await client.act(Hover(point=Point(1, 1)))
    picture_size((await client.screenshot()).png)


async def test_a_client_that_gives_up_on_a_slow_boot_leaves_nothing(tmp_path: Path) -> None:
    """The published client waits for 30 s, and the published server kept what it then booted."""
    from dart_gui.compat.env_server import PublishedRoutes
    from dart_gui.env.server.app import new_app

    async with serving(tmp_path) as server:
        app = new_app(server.service)
        PublishedRoutes(server.service, forward_host="127.0.0.1").add_to(app)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        server.provider.hold_boot.clear()
        headers = {"Authorization": f"Bearer {BOB.token}"}
        async with aiohttp.ClientSession(url, headers=headers) as impatient:
            waiting = asyncio.create_task(impatient.post("/start_emulator"))
            await until(lambda: server.service.status().num_booting == 1)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        http = runner.server
        assert http is not None
        await until(lambda: all(each.transport is None for each in http.connections))
        server.provider.hold_boot.set()
        await until(lambda: server.service.status().num_leased == 0)
        async with server.as_(BOB) as bob:
            await lease(bob)  # its one place is free again
        await runner.cleanup()
        assert len(await server.provider.find()) == 1


# --- real desktops -----------------------------------------------------------------------------


@asynccontextmanager
async def opened(source: DesktopSource) -> AsyncIterator[DesktopCluster]:
    cluster = DesktopCluster(source, TASKS, num_envs=2, pace=PACE)
    await cluster.start()
    try:
        yield cluster
    finally:
        await cluster.close()


@pytest.fixture
async def provider(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[XvfbProvider]:
    root = tmp_path_factory.mktemp("d")
    spec = SandboxSpec(home_mb=16, tmp_mb=16)
    yield XvfbProvider(root, width=400, height=300, spec=spec)
    assert list(root.iterdir()) == []
    assert [each for each in processes.marked() if each.mark.startswith(str(root))] == []


@pytest.mark.desktop
async def test_a_real_desktop_that_hangs_is_replaced(
    provider: XvfbProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = DesktopPool(provider, max_taken=2, spares=0)
    async with opened(pool) as cluster, cluster.lease(TASK) as fine:
        await fine.reset(TASK)
        async with cluster.lease(TASK) as env:
            await env.reset(TASK)
            # The X server: the guest server answers still, and cannot look at the screen.
            await env._client.execute("pkill -STOP Xvfb", shell=True)
            with monkeypatch.context() as patch:
                patch.setattr("dart_gui.env.desktop.client.ANSWER_S", 2.0)
                with pytest.raises(EnvError, match="did not answer"):
                    await env._guard(env._client.screenshot())
        assert cluster.stats().num_replaced == 1
        assert len(await provider.find()) == 1
        await fine.step(Click(point=Point(5, 5)))
        assert cluster.stats().num_replaced == 1


@pytest.mark.desktop
async def test_a_full_disk_breaks_what_needs_it_and_nothing_else(provider: XvfbProvider) -> None:
    fill = "for at in . /tmp; do cat /dev/zero > $at/fill; done; true"
    pool = DesktopPool(provider, max_taken=2, spares=0)
    async with opened(pool) as cluster, cluster.lease(TASK) as fine:
        await fine.reset(TASK)
        async with cluster.lease(TASK) as env:
            done = await env._client.execute(fill, shell=True)
            assert "No space" in done.error
            assert await env._client.act(Click(point=Point(5, 5))) is None
            assert (await env._client.screenshot()).png.startswith(b"\x89PNG")
            with pytest.raises(EnvError, match="No space"):
                await env._guard(env._client.write_file("small", b"1" * 5000))
        assert cluster.stats().num_replaced == 1
        await fine._client.write_file("small", b"1" * 5000)
        await fine.step(Click(point=Point(5, 5)))


@pytest.mark.desktop
async def test_a_boot_that_is_too_slow_is_counted_and_costs_no_place(
    provider: XvfbProvider,
) -> None:
    pool = DesktopPool(provider, max_taken=1, spares=0)
    await pool.start()
    provider._boot_timeout_s = 0.01
    with pytest.raises(EnvError, match=r"within 0\.01 s"):
        await pool.take()
    assert pool.stats().num_boot_failures == 1
    assert await provider.find() == []
    provider._boot_timeout_s = 120.0
    await pool.give_back(await pool.take())
    await pool.close()
