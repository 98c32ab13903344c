"""The env server over HTTP: leases, quotas, heartbeats, its end and its restart."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from PIL import Image

from dart_gui.env.desktop.address import Address
from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.providers.fake import FakeProvider, Fault
from dart_gui.env.server.app import new_app
from dart_gui.env.server.client import REST_S, ServerSource
from dart_gui.env.server.registry import Registry
from dart_gui.env.server.service import EnvService
from dart_gui.env.server.tokens import Token, Tokens
from dart_gui.errors import AuthError, EnvError
from dart_gui.fakes import FakeClock
from dart_gui.types import Click, Point, TypeText

ANN = Token(name="ann", token="ann-secret-of-ann", limit=3)
BOB = Token(name="bob", token="bob-secret-of-bob", limit=1)
ROOT = Token(name="root", token="root-secret-of-root", limit=9, admin=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def never(_: float) -> None:
    """The reaper runs when a test says so."""
    await asyncio.Event().wait()


@dataclass
class Running:
    service: EnvService
    provider: FakeProvider
    clock: FakeClock
    url: str

    async def reap(self) -> None:
        """A tick, and the end of what it ends."""
        await self.service.reap()
        await until(lambda: self.service.status().num_ending == 0)

    @asynccontextmanager
    async def as_(self, token: Token | None) -> AsyncIterator[aiohttp.ClientSession]:
        headers = {"Authorization": f"Bearer {token.token}"} if token else {}
        async with aiohttp.ClientSession(self.url, headers=headers) as session:
            yield session


@asynccontextmanager
async def serving(
    folder: Path,
    *,
    provider: FakeProvider | None = None,
    desktops: int = 4,
    spares: int = 0,
    keep: bool = False,
    faults: tuple[Fault, ...] = (Fault.NONE,),
    clock: FakeClock | None = None,
    sleep: Callable[[float], Awaitable[None]] = never,
    tokens: Sequence[Token] = (ANN, BOB, ROOT),
) -> AsyncIterator[Running]:
    provider = provider or FakeProvider(folder / "d", faults=faults)
    clock = clock or FakeClock(1000.0)
    service = EnvService(
        provider,
        Tokens(tokens),
        Registry(folder),
        max_desktops=desktops,
        spares=spares,
        clock=clock,
        sleep=sleep,
    )
    await service.start()
    runner = web.AppRunner(new_app(service), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Running(service, provider, clock, f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()
        await service.stop(keep_desktops=keep)


async def call(
    session: aiohttp.ClientSession, method: str, path: str, body: Any = None
) -> tuple[int, Any]:
    async with session.request(method, path, json=body) as response:
        return response.status, await response.json()


async def lease(session: aiohttp.ClientSession, **body: Any) -> str:
    status, answer = await call(session, "POST", "/v1/leases", {"wait_s": 60, **body})
    assert status == 201, answer
    return str(answer["lease_id"])


async def test_a_start_can_be_polled(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.as_(ANN) as ann:
        server.provider.hold_boot.clear()
        status, answer = await call(ann, "POST", "/v1/leases", {"ttl_s": 60})
        assert (status, answer["state"], answer["owner"]) == (202, "starting", "ann")
        path = f"/v1/leases/{answer['lease_id']}"
        assert (await call(ann, "GET", path))[1]["state"] == "starting"
        assert (await call(ann, "GET", f"{path}?wait_s=0.05"))[1]["state"] == "starting"
        assert (await call(ann, "GET", f"{path}/guest/health"))[0] == 404
        server.provider.hold_boot.set()
        status, answer = await call(ann, "GET", f"{path}?wait_s=60")
        assert (answer["state"], answer["expires_at"]) == ("running", 1060.0)
        assert (await call(ann, "GET", f"{path}/guest/health"))[1]["status"] == "ready"


async def test_a_start_can_be_waited_for(tmp_path: Path) -> None:
    faults = (Fault.NONE, Fault.NO_BOOT)
    async with serving(tmp_path, faults=faults) as server, server.as_(ANN) as ann:
        await lease(ann)
        status, answer = await call(ann, "POST", "/v1/leases", {"wait_s": 60})
        assert (status, answer["reason"]) == (503, "boot_failed")
        assert "did not boot" in answer["message"]
        _, answer = await call(ann, "GET", "/v1/status")
        assert answer["token"]["num_leased"] == 1  # a failed start costs no quota


async def test_a_lease_does_not_expire_while_its_client_waits(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.as_(ANN) as ann:
        server.provider.hold_boot.clear()
        waiting = asyncio.create_task(lease(ann, ttl_s=1))
        await until(lambda: server.service.status().num_booting == 1)
        (starting,) = server.service.live()
        for _ in range(3):
            before = server.service.live()[0].expires_at
            server.clock.advance(0.9)
            await until(lambda before=before: server.service.live()[0].expires_at > before)  # type: ignore[misc]
            await server.reap()
        server.provider.hold_boot.set()
        assert await waiting == starting.lease_id


async def test_the_guest_api_goes_through_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.as_(ANN) as ann:
        lease_id = await lease(ann)
        headers = {"Authorization": f"Bearer {ANN.token}"}
        address = Address(url=f"{server.url}/v1/leases/{lease_id}/guest", headers=headers)
        guest = GuestClient(address)
        assert await guest.act(Click(point=Point(7, 8))) is None
        assert await guest.cursor_position() == (7, 8)
        assert await guest.act(TypeText(text='ä "😀"\n')) is None
        shot = await guest.screenshot(stable_s=0.02, timeout_s=30)
        assert Image.open(io.BytesIO(shot.png)).size == (320, 200)
        assert shot.encode_ms > 0
        content = bytes(range(256)) * 9000
        await guest.write_file("a b/ü.bin", content)
        assert await guest.read_file("a b/ü.bin") == content
        assert await guest.read_file("none") is None
        assert (await guest.execute("exit 7", shell=True)).returncode == 7
        await guest.close()


async def test_what_is_released_is_ended(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.as_(ANN) as ann:
        lease_id = await lease(ann)
        for _ in range(2):
            status, answer = await call(ann, "DELETE", f"/v1/leases/{lease_id}")
            assert (status, answer["state"], answer["reason"]) == (200, "ended", "released")
        assert await server.provider.find() == []
        for path in ("heartbeat", "guest/health"):
            method = "POST" if path == "heartbeat" else "GET"
            assert (await call(ann, method, f"/v1/leases/{lease_id}/{path}"))[0] == 404


async def test_a_lease_released_while_it_boots_leaves_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.as_(BOB) as bob:
        server.provider.hold_boot.clear()
        _, answer = await call(bob, "POST", "/v1/leases", {})
        await until(lambda: server.provider.num_created == 1)
        await call(bob, "DELETE", f"/v1/leases/{answer['lease_id']}")
        server.provider.hold_boot.set()
        await lease(bob)
        assert len(await server.provider.find()) == 1


async def test_a_client_that_vanishes_loses_its_lease(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.as_(ANN) as ann, server.as_(BOB) as bob:
        lost, kept = await lease(ann, ttl_s=30), await lease(bob, ttl_s=30)
        server.clock.advance(20)
        assert (await call(bob, "POST", f"/v1/leases/{kept}/heartbeat"))[1]["expires_at"] == 1050.0
        server.clock.advance(20)
        await server.reap()
        assert (await call(ann, "GET", f"/v1/leases/{lost}"))[1]["reason"] == "expired"
        assert (await call(bob, "GET", f"/v1/leases/{kept}/guest/health"))[0] == 200
        server.clock.advance(29)  # the request above counted as a heartbeat
        await server.reap()
        assert (await call(bob, "GET", f"/v1/leases/{kept}"))[1]["state"] == "running"
        assert len(await server.provider.find()) == 1


async def test_a_desktop_that_dies_ends_its_lease_and_no_other(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.as_(ANN) as ann:
        dead, fine = await lease(ann), await lease(ann)
        desktop_id = (await call(ann, "GET", f"/v1/leases/{dead}"))[1]["desktop_id"]
        await server.provider.die(desktop_id)
        status, answer = await call(ann, "GET", f"/v1/leases/{dead}/guest/health")
        assert status == 502
        assert "does not answer" in answer["error"]
        await server.provider.destroy(desktop_id)  # as the kernel does with its processes
        await server.reap()
        assert (await call(ann, "GET", f"/v1/leases/{dead}"))[1]["reason"] == "lost"
        assert (await call(ann, "GET", f"/v1/leases/{fine}/guest/health"))[0] == 200


async def test_fifty_clients_race_for_a_quota(tmp_path: Path) -> None:
    async with serving(tmp_path, desktops=60) as server, server.as_(ANN) as ann:
        server.provider.hold_boot.clear()
        answers = await asyncio.gather(*(call(ann, "POST", "/v1/leases", {}) for _ in range(50)))
        statuses = [status for status, _ in answers]
        assert statuses.count(202) == ANN.limit
        assert statuses.count(429) == 50 - ANN.limit
        refused = next(answer for status, answer in answers if status == 429)
        assert (refused["current"], refused["limit"]) == (3, 3)
        server.provider.hold_boot.set()
        status = server.service.status()
        assert (status.num_leased, status.num_quota_refusals) == (3, 47)


async def test_every_route_wants_a_token(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.as_(ANN) as ann:
        lease_id = await lease(ann)
        app = new_app(server.service)
        routes = {
            (route.method, str(route.resource.canonical))
            for route in app.router.routes()
            if route.resource is not None
        }
        assert len(routes) > 20
        wrong = Token(name="x", token="wrong-secret-wrong", limit=1)
        for method, path in sorted(routes - {("GET", "/dashboard"), ("HEAD", "/dashboard")}):
            path = path.replace("{lease}", lease_id).replace("{path}", "health")
            path = path.replace("{name}", "ann").replace("{secret}", "wrong-secret-wrong")
            for token in (None, wrong):
                async with server.as_(token) as session:
                    method = "GET" if method == "*" else method
                    async with session.request(method, path) as response:
                        assert response.status == 401, (method, path)
        async with server.as_(None) as nobody, nobody.get("/dashboard") as response:
            page = await response.text()
            assert response.status == 200
            assert "token" in page
            assert ANN.token not in page


async def test_a_token_can_stand_in_the_path(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.as_(None) as nobody:
        status, answer = await call(nobody, "GET", f"/t/{ANN.token}/v1/status")
        assert (status, answer["token"]["name"]) == (200, "ann")


async def test_nobody_touches_what_is_somebody_elses(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.as_(ANN) as ann, server.as_(BOB) as bob:
        lease_id = await lease(ann)
        for method, path in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/heartbeat"),
            ("GET", "/guest/screenshot"),
            ("GET", "/thumbnail"),
            ("GET", "/usage"),
        ):
            assert (await call(bob, method, f"/v1/leases/{lease_id}{path}"))[0] == 404
        assert (await call(bob, "GET", "/v1/leases"))[1] == {"leases": []}
        assert (await call(bob, "PUT", "/v1/tokens/bob/limit", {"limit": 9}))[0] == 403
        assert [t["name"] for t in (await call(bob, "GET", "/v1/tokens"))[1]["tokens"]] == ["bob"]
        assert (await call(ann, "GET", f"/v1/leases/{lease_id}/guest/health"))[0] == 200


async def test_an_administrator_sees_and_stops_all(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.as_(ANN) as ann, server.as_(ROOT) as root:
        lease_id = await lease(ann)
        _, answer = await call(root, "GET", "/v1/leases")
        assert [one["owner"] for one in answer["leases"]] == ["ann"]
        assert (await call(root, "GET", f"/v1/leases/{lease_id}/usage"))[1]["num_processes"] == 1
        async with root.get(f"/v1/leases/{lease_id}/thumbnail") as response:
            assert Image.open(io.BytesIO(await response.read())).format == "JPEG"
        assert (await call(root, "DELETE", f"/v1/leases/{lease_id}"))[1]["reason"] == "stopped"
        assert (await call(root, "PUT", "/v1/tokens/bob/limit", {"limit": 2}))[1]["limit"] == 2
        async with server.as_(BOB) as bob:
            await lease(bob)
            await lease(bob)


async def test_looking_at_a_desktop_does_not_keep_it(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.as_(ANN) as ann, server.as_(ROOT) as root:
        lease_id = await lease(ann, ttl_s=10)
        server.clock.advance(9)
        async with root.get(f"/v1/leases/{lease_id}/thumbnail") as response:
            assert response.status == 200
        server.clock.advance(2)
        await server.reap()
        assert (await call(ann, "GET", f"/v1/leases/{lease_id}"))[1]["reason"] == "expired"


@pytest.mark.parametrize(
    "body", [{"ttl_s": 0}, {"ttl_s": "x"}, {"ttl_s": 1e9}, {"wait_s": -1}, {"ttl_s": True}, [1]]
)
async def test_what_makes_no_sense_is_refused(tmp_path: Path, body: Any) -> None:
    async with serving(tmp_path) as server, server.as_(ANN) as ann:
        assert (await call(ann, "POST", "/v1/leases", body))[0] == 400
        assert await server.provider.find() == []


async def test_metrics_count_what_happened(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, server.as_(ANN) as ann:
        await call(ann, "DELETE", f"/v1/leases/{await lease(ann)}")
        await lease(ann)
        async with ann.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        assert 'dart_env_leases{state="running"} 1' in lines
        assert 'dart_env_leases_ended_total{reason="released"} 1' in lines


# --- restart -------------------------------------------------------------------------------------


async def test_a_restarted_server_finds_its_desktops(tmp_path: Path) -> None:
    provider, clock = FakeProvider(tmp_path / "d"), FakeClock(1000.0)
    async with (
        serving(tmp_path, provider=provider, clock=clock, keep=True) as server,
        server.as_(ANN) as ann,
        server.as_(ROOT) as root,
    ):
        kept = await lease(ann)
        await call(root, "PUT", "/v1/tokens/bob/limit", {"limit": 5})
    await provider.create("orphan")
    async with serving(tmp_path, provider=provider, clock=clock, desktops=2) as server:
        assert server.service.status().num_orphans == 1
        await until(lambda: server.service.status().num_ending == 0)
        assert len(await provider.find()) == 1
        async with server.as_(ANN) as ann:
            assert (await call(ann, "GET", f"/v1/leases/{kept}/guest/health"))[0] == 200
            await lease(ann)  # the second of the two places
            status, _ = await call(ann, "POST", "/v1/leases", {"wait_s": 0.05})
            assert status == 202  # waits: the kept one counts
            await call(ann, "DELETE", f"/v1/leases/{kept}")
            await until(lambda: server.service.status().num_booting == 0)
        assert server.service.tokens.get("bob") == BOB.model_copy(update={"limit": 5})
    assert await provider.find() == []


@pytest.mark.parametrize("down_s", [1, 1000])
async def test_an_old_lease_outlives_a_restart(tmp_path: Path, down_s: float) -> None:
    """It is older than its time to live, of which the registry knows no heartbeat."""
    provider, clock = FakeProvider(tmp_path / "d"), FakeClock(1000.0)
    async with (
        serving(tmp_path, provider=provider, clock=clock, keep=True) as server,
        server.as_(ANN) as ann,
    ):
        kept = await lease(ann, ttl_s=60)
        for _ in range(8):
            clock.advance(15)
            await call(ann, "POST", f"/v1/leases/{kept}/heartbeat")
        await server.reap()
    clock.advance(down_s)
    async with (
        serving(tmp_path, provider=provider, clock=clock) as server,
        server.as_(ANN) as ann,
    ):
        await server.reap()
        assert (await call(ann, "GET", f"/v1/leases/{kept}/guest/health"))[0] == 200
        clock.advance(61)
        await server.reap()
        assert (await call(ann, "GET", f"/v1/leases/{kept}"))[1]["reason"] == "expired"


async def test_a_limit_that_was_set_gives_way_to_a_new_configuration(tmp_path: Path) -> None:
    (tmp_path / "registry.json").write_text('{"leases": [], "limits": {"ann": 1}}')  # as once
    async with serving(tmp_path) as server, server.as_(ROOT) as root:
        for name in ("ann", "bob"):
            await call(root, "PUT", f"/v1/tokens/{name}/limit", {"limit": 8})
    changed = [ANN.model_copy(update={"limit": 5}), BOB, ROOT]
    for _ in range(2):
        async with serving(tmp_path, tokens=changed) as server:
            limits = [token.limit for token in server.service.tokens.all()]
            assert limits == [5, 8, ROOT.limit]


async def test_a_server_killed_with_eight_leases_out(tmp_path: Path) -> None:
    """What its registry and the provider say is all that is left; nothing was told to either."""
    provider, clock = FakeProvider(tmp_path / "d"), FakeClock(1000.0)
    async with serving(tmp_path, provider=provider, clock=clock, desktops=8) as server:
        async with server.as_(ROOT) as root:
            leases = [await lease(root, ttl_s=100) for _ in range(8)]
            gone = (await call(root, "GET", f"/v1/leases/{leases[0]}"))[1]["desktop_id"]
        saved = (tmp_path / "registry.json").read_bytes()
        desktops = {desktop.desktop_id for desktop in await provider.find()}
        server.service._pool.disown(list(server.service._desktops.values()))
    (tmp_path / "registry.json").write_bytes(saved)
    await provider.destroy(gone)
    async with serving(tmp_path, provider=provider, clock=clock, desktops=8) as server:
        assert {desktop.desktop_id for desktop in await provider.find()} == desktops - {gone}
        status = server.service.status()
        assert (status.num_leased, status.num_ended["lost"], status.num_orphans) == (7, 1, 0)
        async with server.as_(ROOT) as root:
            assert (await call(root, "GET", f"/v1/leases/{leases[5]}/guest/health"))[0] == 200
            clock.advance(101)
            await server.reap()
            assert await provider.find() == []


async def test_a_stopped_server_ends_what_it_leased(tmp_path: Path) -> None:
    provider = FakeProvider(tmp_path / "d")
    async with serving(tmp_path, provider=provider, spares=2) as server, server.as_(ANN) as ann:
        await lease(ann)
    assert await provider.find() == []


# --- the client side -------------------------------------------------------------------------------


async def test_desktops_are_placed_by_load(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "a", desktops=2) as one,
        serving(tmp_path / "b", desktops=4) as two,
    ):
        source = ServerSource([one.url, two.url], ANN.token)
        await source.start()
        taken = [await source.take() for _ in range(4)]
        assert [len(await server.provider.find()) for server in (one, two)] == [2, 2]
        guest = GuestClient(taken[-1].address)
        assert (await guest.health())["status"] == "ready"
        await guest.close()
        for desktop in taken:
            await source.give_back(desktop)
        await source.close()
        assert await one.provider.find() == await two.provider.find() == []


async def test_a_server_with_booted_spares_comes_first(tmp_path: Path) -> None:
    async with serving(tmp_path / "a") as cold, serving(tmp_path / "b", spares=1) as warm:
        await until(lambda: warm.service.status().num_ready == 1)
        source = ServerSource([cold.url, warm.url], ANN.token)
        await source.start()
        await source.take()
        assert cold.service.status().num_leased == 0
        await source.close()
        assert warm.service.status().num_leased == 0


async def test_those_that_take_at_once_are_spread(tmp_path: Path) -> None:
    async with serving(tmp_path / "a") as one, serving(tmp_path / "b") as two:
        source = ServerSource([one.url, two.url], ROOT.token)
        await source.start()
        for server in (one, two):
            server.provider.hold_boot.clear()
        taking = [asyncio.create_task(source.take()) for _ in range(8)]
        leased = [0, 0]
        while sum(leased) < 8:
            await asyncio.sleep(0.005)
            leased = [server.service.status().num_leased for server in (one, two)]
        assert leased == [4, 4]
        for server in (one, two):
            server.provider.hold_boot.set()
        await asyncio.gather(*taking)
        await source.close()


async def test_a_server_whose_desktops_do_not_boot_comes_last_for_a_while(tmp_path: Path) -> None:
    clock = FakeClock()
    async with (
        serving(tmp_path / "a", faults=(Fault.NO_BOOT,)) as bad,
        serving(tmp_path / "b", desktops=3) as good,
    ):
        source = ServerSource([bad.url, good.url], ANN.token, clock=clock)
        await source.start()
        for _ in range(2):
            assert (await source.take()).address.url.startswith(good.url)
        assert bad.provider.num_created == 1
        clock.advance(REST_S + 1)
        assert (await source.take()).address.url.startswith(good.url)
        assert bad.provider.num_created == 2
        with pytest.raises(EnvError, match="did not boot"):  # all others are full
            await source.take()
        assert bad.provider.num_created == 3
        await source.close()


async def test_a_server_that_fails_is_not_asked_for_a_while(tmp_path: Path) -> None:
    clock, asked = FakeClock(), []

    async def fail(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"error": "out of order"}, status=503)

    app = web.Application()
    app.router.add_get("/v1/status", fail)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    broken = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with serving(tmp_path) as server:
        source = ServerSource([broken, server.url], ANN.token, clock=clock)
        await source.start()
        for _ in range(2):
            await source.take()
        assert len(asked) == 1
        clock.advance(REST_S + 1)
        await source.take()
        assert len(asked) == 2
        await source.close()
    await runner.cleanup()


async def test_taking_waits_where_all_are_full(tmp_path: Path) -> None:
    async def soon(_: float) -> None:
        await asyncio.sleep(0.01)

    async with serving(tmp_path) as server:
        source = ServerSource([server.url], BOB.token, sleep=soon)
        await source.start()
        first = await source.take()
        second = asyncio.create_task(source.take())
        await asyncio.sleep(0.1)
        assert not second.done()
        await source.give_back(first)
        await second
        await source.close()
        hasty = ServerSource([server.url], BOB.token, full_timeout_s=0, sleep=soon)
        await hasty.start()
        await hasty.take()
        with pytest.raises(EnvError, match="became free"):
            await hasty.take()
        await hasty.close()


async def test_a_server_that_is_down_is_left_out(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        down = "http://127.0.0.1:9"
        source = ServerSource([down, server.url], ANN.token)
        await source.start()
        await source.take()
        await source.close()
        with pytest.raises(EnvError, match="no env server answers"):
            await ServerSource([down], ANN.token).start()
        with pytest.raises(AuthError, match="refused our token"):
            await ServerSource([server.url], "wrong-secret-wrong").start()
