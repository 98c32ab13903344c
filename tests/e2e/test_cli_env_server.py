"""`dart-gui env-server` as a process, with real desktops: killed, started again, stopped."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dart_gui.env.desktop.client import Address, GuestClient
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
def test_desktops_outlive_a_server_that_is_killed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("s")
    options = ("--desktops", "2", "--spares", "0", "--width", "320", "--height", "200")
    server, url, token = start(folder, *options)
    address = asyncio.run(use_a_desktop(url, token))
    server.send_signal(signal.SIGKILL)
    server.wait()
    assert len(marks(folder)) == 1

    server, url, token = start(folder, *options)
    moved = Address(url=f"{url}{address}", headers={"Authorization": f"Bearer {token}"})
    assert asyncio.run(pointer(moved)) == (33, 44)
    server.send_signal(signal.SIGTERM)
    assert server.wait(START_S) == 0
    assert marks(folder) == set()
    assert list((folder / "d").iterdir()) == []


async def use_a_desktop(url: str, token: str) -> str:
    """Leave a mark on a desktop; the path of its guest API. Its heartbeat ends with us."""
    source = ServerSource([url], token)
    await source.start()
    desktop = await source.take()
    guest = GuestClient(desktop.address)
    await guest.act(Click(point=Point(33, 44)))
    await guest.close()
    for held in source._held.values():
        held.heart.cancel()
    source._held.clear()  # as one that vanishes: nothing is released
    await source.close()
    return desktop.address.url.removeprefix(url)


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
