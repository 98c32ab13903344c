"""`dart-gui env-server` as a process, with real desktops: killed, started again, stopped."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from dart_gui.env.desktop.address import Address
from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.providers import processes
from dart_gui.env.server.client import ServerSource
from dart_gui.types import Click, Point

START_S = 120


def start(folder: Path, *options: str) -> tuple[subprocess.Popen[bytes], str, str]:
    (folder / "server.json").unlink(missing_ok=True)
    command = [sys.executable, "-m", "dart_gui", "env-server", "--dir", str(folder), *options]
    with (folder / "log").open("ab") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + START_S
    while not (folder / "server.json").exists():
        assert server.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    url = json.loads((folder / "server.json").read_text())["url"]
    return server, url, (folder / "token").read_text().strip()


def marks(folder: Path) -> set[str]:
    return {one.mark for one in processes.marked() if one.mark.startswith(str(folder))}


@pytest.mark.desktop
@pytest.mark.slow
def test_a_server_is_killed_with_eight_leases_out(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """One desktop dies with it, and one that nobody held is there: seven are found, the eighth lease
    is lost, the ninth desktop is ended, and nothing is left of any after the end."""
    folder = tmp_path_factory.mktemp("s")
    options = ("--desktops", "8", "--spares", "1", "--width", "320", "--height", "200")
    server, url, token = start(folder, *options)
    paths = asyncio.run(use_desktops(url, token, 8))
    server.send_signal(signal.SIGKILL)
    server.wait()
    leased = {lease["desktop_id"]: lease["lease_id"] for lease in remembered(folder)}
    assert len(leased) == 8
    assert marks(folder) > {str(folder / "d" / desktop_id) for desktop_id in leased}
    dead = next(iter(leased))
    assert processes.kill(str(folder / "d" / dead))

    server, url, token = start(folder, *options)
    headers = {"Authorization": f"Bearer {token}"}
    status = json.loads(get(f"{url}/v1/status", headers))
    ended = {reason: number for reason, number in status["num_ended"].items() if number}
    assert (status["num_leased"], ended, status["num_orphans"]) == (7, {"lost": 1}, 1)
    kept = {at: path for at, path in enumerate(paths) if leased[dead] not in path}
    assert len(kept) == 7
    for at, path in kept.items():
        assert asyncio.run(pointer(Address(url=f"{url}{path}", headers=headers))) == (33 + at, 44)
    server.send_signal(signal.SIGTERM)
    assert server.wait(START_S) == 0
    assert marks(folder) == set()
    assert list((folder / "d").iterdir()) == []


def remembered(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "registry.json").read_text())["leases"])


def get(url: str, headers: dict[str, str]) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as response:
        return bytes(response.read())


async def use_desktops(url: str, token: str, number: int) -> list[str]:
    """Leave a mark on each of some desktops; the paths of their guest APIs. Their heartbeats end with
    us. Ready too: a spare, which nobody holds."""
    source = ServerSource([url], token)
    await source.start()
    desktops = await asyncio.gather(*(source.take() for _ in range(number)))
    for at, desktop in enumerate(desktops):
        guest = GuestClient(desktop.address)
        await guest.act(Click(point=Point(33 + at, 44)))
        await guest.close()
    headers = {"Authorization": f"Bearer {token}"}
    while not json.loads(await asyncio.to_thread(get, f"{url}/v1/status", headers))["num_ready"]:
        await asyncio.sleep(0.05)
    for held in source._held.values():
        held.heart.cancel()
    source._held.clear()  # as one that vanishes: nothing is released
    await source.close()
    return [desktop.address.url.removeprefix(url) for desktop in desktops]


async def pointer(address: Address) -> tuple[int, int]:
    guest = GuestClient(address)
    try:
        return await guest.cursor_position()
    finally:
        await guest.close()


def test_two_servers_in_one_folder_are_refused(tmp_path: Path) -> None:
    server, _, _ = start(tmp_path, "--provider", "fake")
    command = ["dart_gui", "env-server", "--dir", str(tmp_path), "--provider", "fake"]
    second = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False, timeout=120
    )
    assert second.returncode == 1
    assert "another env server runs in" in second.stderr
    server.send_signal(signal.SIGTERM)
    assert server.wait(START_S) == 0
