"""The published env server's routes: golden answers, and the calls of its clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from dart_gui.compat.env_server import IDLE_TTL_S, PublishedRoutes
from dart_gui.env.desktop.ports import SCREEN
from dart_gui.env.providers.fake import FakeProvider, Fault
from dart_gui.env.providers.protocol import Desktop
from dart_gui.env.server.app import new_app
from dart_gui.env.server.registry import Registry
from dart_gui.env.server.service import EnvService
from dart_gui.env.server.tokens import Token, Tokens
from dart_gui.fakes import FakeClock

DART = Token(name="dart", token="dart-dart-dart-dart", limit=2)
OTHER = Token(name="other", token="other-other-other", limit=5)
ROOT = Token(name="root", token="root-root-root-root", limit=5, admin=True)
PORTS = {"vnc_port", "chromium_port", "vlc_port", "server_port"}


@dataclass
class Running:
    service: EnvService
    provider: FakeProvider
    clock: FakeClock
    url: str


@asynccontextmanager
async def serving(
    folder: Path,
    *,
    forward_host: str = "127.0.0.1",
    faults: tuple[Fault, ...] = (Fault.NONE,),
    provider: FakeProvider | None = None,
    keep: bool = False,
) -> AsyncIterator[Running]:
    async def never(_: float) -> None:
        await asyncio.Event().wait()

    provider = provider or FakeProvider(folder / "d", faults=faults)
    clock = FakeClock(1_000_000.0)
    service = EnvService(
        provider,
        Tokens([DART, OTHER, ROOT]),
        Registry(folder),
        max_desktops=8,
        spares=0,
        clock=clock,
        sleep=never,
    )
    await service.start()
    app = new_app(service)
    PublishedRoutes(service, forward_host=forward_host, clock=clock).add_to(app)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield Running(service, provider, clock, f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()
        await service.stop(keep_desktops=keep)
        assert keep or await provider.find() == []


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving(tmp_path) as running:
        yield running


async def call(
    server: Running,
    method: str,
    path: str,
    body: Any = None,
    token: Token | None = DART,
) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token.token}"} if token else {}
    async with (
        aiohttp.ClientSession(server.url, headers=headers) as session,
        session.request(method, path, json=body) as response,
    ):
        return response.status, await response.json()


async def start(server: Running, token: Token = DART) -> dict[str, Any]:
    """As the published provider does: the token in the body and in the header."""
    status, answer = await call(server, "POST", "/start_emulator", {"token": token.token}, token)
    assert (status, answer["code"]) == (200, 0)
    return dict(answer["data"])


async def test_an_emulator_is_started_used_and_stopped(server: Running) -> None:
    data = await start(server)
    assert set(data) == {"emulator_id", "token", *PORTS}
    assert data["token"] == DART.token
    assert all(data[port] for port in PORTS)  # its client takes 0 for "not started"
    guest = f"http://127.0.0.1:{data['server_port']}"
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{guest}/screenshot") as response:
            assert response.status == 200
            assert (await response.read()).startswith(b"\x89PNG")
        command = {"command": ["echo", "hi"], "shell": False}
        async with session.post(f"{guest}/execute", json=command) as response:
            assert (await response.json())["output"] == "hi\n"
    status, answer = await call(server, "DELETE", f"/emulators/{data['emulator_id']}")
    assert (status, answer) == (200, {"message": "Emulator stopped successfully", "code": 0})
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"{guest}/screenshot")


async def test_the_old_way_to_stop(server: Running) -> None:
    data = await start(server)
    body = {"emulator_id": data["emulator_id"]}
    assert (await call(server, "POST", "/stop_emulator", body))[1]["code"] == 0
    golden = {"message": "Emulator not found", "code": 404, "status": "not_found"}
    assert await call(server, "POST", "/stop_emulator", body) == (404, golden)
    golden = {"message": "emulator_id is required", "code": 400}
    assert await call(server, "POST", "/stop_emulator", {}) == (400, golden)


@pytest.mark.parametrize(
    ("headers", "body", "query", "status"),
    [
        ({}, None, "", 401),
        ({"Authorization": "Bearer nobody-nobody-no"}, None, "", 403),
        ({}, {"token": "nobody-nobody-no"}, "", 403),
        ({}, {"token": DART.token}, "", 200),
        ({}, None, f"?token={DART.token}", 200),
        # The header comes first.
        ({"Authorization": "Bearer nobody-nobody-no"}, {"token": DART.token}, "", 403),
    ],
)
async def test_where_a_token_is_looked_for(
    server: Running, headers: dict[str, str], body: Any, query: str, status: int
) -> None:
    async with (
        aiohttp.ClientSession(server.url, headers=headers) as session,
        session.get(f"/ping{query}", json=body) as response,
    ):
        assert response.status == status
        answer = await response.json()
        assert answer["message"] == "Hello, World!" if status == 200 else answer["code"] == status


async def test_every_published_route_wants_a_token(server: Running) -> None:
    routes = [
        *(("GET", path) for path in ("/ping", "/start_emulator", "/status", "/tokens")),
        *(("GET", path) for path in ("/emulators", "/emulator_resources", "/request_logs")),
        *(("GET", path) for path in ("/emulator_resources/x", "/emulator_status/x")),
        *(("POST", path) for path in ("/start_emulator", "/stop_emulator", "/set_token_limit")),
        *(("POST", path) for path in ("/stop_all_emulators", "/remove_all_containers")),
        *(("POST", "/cleanup"), ("DELETE", "/emulators/x"), ("GET", "/emulators_by_token")),
    ]
    for method, path in routes:
        golden = {"message": "Token required", "code": 401}
        assert await call(server, method, path, token=None) == (401, golden), path


async def test_the_quota(server: Running) -> None:
    await start(server)
    await start(server)
    status, answer = await call(server, "POST", "/start_emulator", {"token": DART.token})
    golden = {"message": "Token quota exceeded for 'dart': 2/2", "code": 429}
    assert (status, answer) == (429, golden)


async def test_lists(server: Running) -> None:
    data = await start(server)
    await start(server, OTHER)
    server.clock.advance(90)
    _, (item,) = await call(server, "GET", "/emulators")
    ports = {port: data[port] for port in PORTS}
    (desktop,) = [d for d in await server.provider.find() if d.desktop_id == item["container_id"]]
    golden = {
        "emulator_id": data["emulator_id"],
        "token": DART.token,
        **ports,
        "start_time": 1_000_000.0,  # Unix seconds, as the published page computes with it
        "duration_minutes": 1,
        "container_id": desktop.desktop_id,
    }
    assert item == golden
    _, status = await call(server, "GET", f"/emulator_status/{data['emulator_id']}")
    del golden["start_time"]
    assert status == {**golden, "status": "running"}
    _, ids = await call(server, "GET", f"/emulators_by_token?token={DART.token}")
    assert ids == [data["emulator_id"]]
    _, everybody = await call(server, "GET", "/emulators", token=ROOT)
    assert {one["token"] for one in everybody} == {"dart", "other"}  # names, not secrets


async def test_lists_can_be_of_one_token(server: Running) -> None:
    mine, other = await start(server), await start(server, OTHER)
    for named in (OTHER.token, OTHER.name):
        for path in ("/emulators", "/emulator_resources"):
            _, items = await call(server, "GET", f"{path}?token={named}", token=ROOT)
            assert [item["emulator_id"] for item in items] == [other["emulator_id"]]
        path = f"/emulators_by_token?token={named}"
        assert (await call(server, "GET", path, token=ROOT))[1] == [other["emulator_id"]]
        assert (await call(server, "GET", path))[1] == []  # not the caller's
    path = f"/emulators_by_token?token={DART.token}"
    assert (await call(server, "GET", path))[1] == [mine["emulator_id"]]
    assert (await call(server, "GET", "/emulators?token=nobody-of-this-name", token=ROOT))[1] == []


async def test_resources(server: Running) -> None:
    data = await start(server)
    _, item = await call(server, "GET", f"/emulator_resources/{data['emulator_id']}")
    assert set(item["resources"]) == {
        *("cpu_percent", "memory_usage_bytes", "memory_limit_bytes", "memory_percent"),
        *("net_rx_bytes", "net_tx_bytes", "blk_read_bytes", "blk_write_bytes"),
    }
    assert item["resources"].pop("memory_usage_bytes") == 1 << 20
    assert set(item["resources"].values()) == {None}  # not measured is not 0
    item["resources"]["memory_usage_bytes"] = 1 << 20
    assert (await call(server, "GET", "/emulator_resources"))[1] == [item]
    assert (await call(server, "GET", "/emulator_resources/none"))[0] == 404


async def test_status_and_tokens_show_the_caller_its_own(server: Running) -> None:
    await start(server)
    _, tokens = await call(server, "GET", "/tokens")
    assert tokens == {DART.token: {"current": 1, "limit": 2, "emulator_count": 1}}
    _, status = await call(server, "GET", "/status")
    assert set(status) == {
        *("uptime_seconds", "cpu_percent", "memory_percent"),
        *("total_containers_for_image", "total_emulators", "tokens"),
    }
    assert 0 <= status["cpu_percent"] <= 100
    assert 0 < status["memory_percent"] < 100
    assert status["total_containers_for_image"] == 1
    golden = {"token": DART.token, "current": 1, "limit": 2, "available": 1}
    assert (status["total_emulators"], status["tokens"]) == (1, [golden])


async def test_dangerous_routes_demand_an_administrator(server: Running) -> None:
    await start(server, OTHER)
    body = {"token": "dart", "limit": 5}
    for method, path in (
        ("POST", "/set_token_limit"),
        ("POST", "/cleanup"),
        ("GET", "/request_logs"),
    ):
        assert (await call(server, method, path, body if method == "POST" else None))[0] == 403
    assert (await call(server, "POST", "/set_token_limit", body, ROOT))[1] == {
        "message": "Token 'dart' limit set to 5",
        "code": 0,
    }
    assert (await call(server, "GET", "/tokens"))[1][DART.token]["limit"] == 5
    for wrong, text in (
        ({"token": "dart"}, "Valid integer 'limit' is required"),
        ({"limit": 3}, "'token' is required"),
        ({"token": "eve", "limit": 3}, "Unknown token 'eve'. Token creation is disabled."),
    ):
        status, answer = await call(server, "POST", "/set_token_limit", wrong, ROOT)
        assert (status, answer) == (400, {"message": text, "code": 400})
    assert len(await server.provider.find()) == 1
    golden = {"message": "Cleanup executed", "code": 0, "ret": 0}
    assert (await call(server, "POST", "/cleanup", token=ROOT))[1] == golden
    assert await server.provider.find() == []
    _, log = await call(server, "GET", "/request_logs?limit=2", token=ROOT)
    assert [entry["path"] for entry in log] == ["/cleanup", "/request_logs"]
    assert not any(token.token in str(log) for token in (DART, OTHER, ROOT))


async def test_stop_all_stops_ones_own(server: Running) -> None:
    data = await start(server)
    await start(server, OTHER)
    _, answer = await call(server, "POST", "/stop_all_emulators")
    assert answer == {
        "message": "Stopped 1 emulator(s), 0 failed",
        "code": 0,
        "stopped_count": 1,
        "failed_count": 0,
        "stopped_ids": [data["emulator_id"]],
    }
    assert len((await call(server, "GET", "/emulators", token=OTHER))[1]) == 1


async def test_several_end_at_once(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    destroy = server.provider.destroy
    for path, token in (
        ("/stop_all_emulators", DART),
        ("/remove_all_containers", DART),
        ("/cleanup", ROOT),
    ):
        for _ in range(2):
            await start(server)
        barrier = asyncio.Barrier(2)

        async def together(desktop_id: str, barrier: asyncio.Barrier = barrier) -> None:
            async with asyncio.timeout(60):
                await barrier.wait()
            await destroy(desktop_id)

        with monkeypatch.context() as patch:
            patch.setattr(server.provider, "destroy", together)
            assert (await call(server, "POST", path, token=token))[0] == 200
        assert await server.provider.find() == []


async def test_remove_all_by_age(server: Running) -> None:
    await start(server)
    server.clock.advance(120)
    await start(server)
    body = {"min_age": 1, "image": "happysixd/osworld-docker", "dry_run": True}
    _, answer = await call(server, "POST", "/remove_all_containers", body)
    assert (answer["removed_count"], answer["failed_count"], answer["dry_run"]) == (1, 0, True)
    assert len(await server.provider.find()) == 2
    _, answer = await call(server, "POST", "/remove_all_containers", body | {"dry_run": False})
    assert len(answer["removed_ids"]) == 1
    assert answer["message"] == "Removed 1 container(s), 0 failed"
    assert len(await server.provider.find()) == 1


async def test_a_start_that_fails_costs_no_quota(tmp_path: Path) -> None:
    async with serving(tmp_path, faults=(Fault.NO_BOOT, Fault.NONE)) as server:
        status, answer = await call(server, "POST", "/start_emulator")
        assert (status, answer["code"]) == (500, 500)
        assert answer["message"].startswith("Failed to start emulator: ")
        await start(server)
        await start(server)


async def test_ports_are_opt_in(tmp_path: Path) -> None:
    async with serving(tmp_path, forward_host="") as server:
        status, answer = await call(server, "POST", "/start_emulator")
        assert status == 500
        assert "--forward-host" in answer["message"]
        assert await server.provider.find() == []


async def test_a_port_admits_the_lessee_only(server: Running) -> None:
    data = await start(server)
    local = aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
    async with aiohttp.ClientSession(connector=local) as stranger:
        with pytest.raises(aiohttp.ClientError):
            await stranger.get(f"http://127.0.0.1:{data['server_port']}/screenshot")


async def test_ports_are_the_same_after_a_restart(tmp_path: Path) -> None:
    """Who has the lease knows them by number, and hears nothing of the restart."""
    provider = FakeProvider(tmp_path / "d")
    async with serving(tmp_path, provider=provider, keep=True) as server:
        data, taken = await start(server), await start(server)
    squatter = await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", taken["server_port"]
    )
    async with serving(tmp_path, provider=provider) as server, aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{data['server_port']}/platform") as response:
            assert response.status == 200
        _, items = await call(server, "GET", "/emulators")
        found = {item["emulator_id"]: item for item in items}
        assert {name: found[data["emulator_id"]][name] for name in PORTS} == {
            name: data[name] for name in PORTS
        }
        assert taken["emulator_id"] in found  # it lives on: its port cannot be had
    squatter.close()


async def test_a_screen_that_is_published_has_a_port_of_its_own(tmp_path: Path) -> None:
    class Machines(FakeProvider):
        async def create(self, desktop_id: str) -> Desktop:
            made = await super().create(desktop_id)
            ports = {SCREEN: "http://127.0.0.1:1"}
            return replace(made, address=replace(made.address, ports=ports))

    for provider, num_ports in ((FakeProvider, 3), (Machines, 4)):
        async with serving(tmp_path, provider=provider(tmp_path / provider.__name__)) as server:
            data = await start(server)
            assert len({data[name] for name in PORTS}) == num_ports
            assert (data["vnc_port"] == data["server_port"]) == (num_ports == 3)


async def test_traffic_keeps_a_lease_that_has_no_heartbeat(server: Running) -> None:
    used, idle = await start(server), await start(server)
    server.clock.advance(IDLE_TTL_S - 1)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{used['server_port']}/platform") as response,
    ):
        assert response.status == 200
    server.clock.advance(2)
    await server.service.reap()
    _, items = await call(server, "GET", "/emulators")
    assert [item["emulator_id"] for item in items] == [used["emulator_id"]]
    with pytest.raises(OSError, match="Connect"):  # an ended lease leaves no port open
        await asyncio.open_connection("127.0.0.1", idle["server_port"])
