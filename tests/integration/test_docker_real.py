"""Desktops in containers of a real daemon: whose they are, what ends them, and tasks solved on them."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from dart_gui.config import EnvConfig
from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.cluster import DesktopCluster
from dart_gui.env.desktop.env import Pace
from dart_gui.env.desktop.mini import mini_tasks
from dart_gui.env.desktop.pool import DesktopPool
from dart_gui.env.desktop.suite import SUITE
from dart_gui.env.providers.docker import DESKTOP, OWNER, DockerProvider, docker_provider
from dart_gui.env.providers.private import PrivateProvider
from dart_gui.errors import EnvError, SetupError
from dart_gui.types import Click, Point, Task, TypeText

pytestmark = pytest.mark.docker
# Makes a desktop of its own and waits to be killed.
MAKER = """
import asyncio, pathlib, sys
from dart_gui.config import EnvConfig
from dart_gui.env.providers.docker import docker_provider
from dart_gui.env.providers.private import PrivateProvider

async def main():
    config = EnvConfig.model_validate_json(sys.argv[1])
    base = pathlib.Path(sys.argv[2])
    provider = PrivateProvider("docker", lambda root: docker_provider(config, root), base=base)
    await provider.start()
    await provider.create("left")
    print("made", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


# In each folder that can be written, which a file system on a disk must not hold.
FILL = """
for at in . /tmp /var/tmp /dev/shm; do cat /dev/zero > $at/fill; done
for at in $(find / -type d -writable -not -path '/proc/*' -printf '%F:%p ' 2> /dev/null); do
    case $at in tmpfs:* | mqueue:*) ;; *) echo $at ;; esac
done
"""
PODMAN_WARNINGS = {False: [], True: ["desktops reach each other over their network"]}


def is_podman(daemon: Any) -> bool:
    return any("Podman" in part["Name"] for part in daemon.version()["Components"])


def settings(**changes: Any) -> EnvConfig:
    values = {
        "provider": "docker",
        "docker_host": os.environ["DART_DOCKER_HOST"],
        "docker_image": os.environ["DART_DOCKER_IMAGE"],
        "desktop_width": 800,
        "desktop_height": 500,
    }
    return EnvConfig.model_validate(values | changes)


@pytest.fixture
def daemon() -> Iterator[Any]:
    import docker

    client = docker.DockerClient(base_url=os.environ["DART_DOCKER_HOST"])
    yield client
    client.close()


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[DockerProvider]:
    made = docker_provider(settings(), tmp_path)
    await made.start()
    yield made
    for desktop in await made.find():
        await made.destroy(desktop.desktop_id)
    await made.close()


def labelled(daemon: Any, folder: Path) -> list[Any]:
    owner = f"{socket.gethostname()}:{folder}"
    filters = {"label": f"{OWNER}={owner}"}
    return [
        *daemon.containers.list(all=True, filters=filters),
        *daemon.networks.list(filters=filters),
    ]


async def test_tasks_are_solved_on_them() -> None:
    tasks = mini_tasks()
    pace = Pace(react_s=2.0, settle_s=0.15, settle_limit_s=30.0)
    pool = DesktopPool(docker_provider(settings(), Path("/tasks")), max_taken=1, spares=1)
    cluster = DesktopCluster(pool, tasks, num_envs=1, pace=pace)
    await cluster.start()
    try:
        for name in ("rename-file", "editor-new-note"):
            for way, reward in (("solution", 1.0), ("near_miss", 0.0)):
                task = Task(task_id=f"desktop-mini/{name}", seed=11)
                actions = getattr(tasks.instantiate(task), way)
                async with cluster.lease(task) as env:
                    await env.reset(task)
                    for action in actions:
                        assert (await env.step(action)).action_error is None
                    assert (await env.evaluate()).reward == reward
    finally:
        await cluster.close()


async def test_what_is_typed_arrives_and_is_seen(provider: DockerProvider) -> None:
    desktop = await provider.create("one")
    client = GuestClient(desktop.address)
    before = (await client.screenshot()).png
    await client.launch(["xterm", "-e", "cat > typed"])
    await client.wait(window_name="xterm", by_class=True, min_colors=2, timeout_s=60)
    assert await client.act(TypeText(text="naïve Ω\n")) is None
    assert (await client.screenshot(stable_s=0.2, react_s=5, timeout_s=20)).png != before
    typed = b""
    async with asyncio.timeout(60):
        while typed != "naïve Ω\n".encode():
            typed = await client.read_file("typed") or b""
    await client.close()


async def test_desktops_are_found_after_a_restart(provider: DockerProvider, tmp_path: Path) -> None:
    made = await provider.create("one")
    again = docker_provider(settings(), tmp_path)
    await again.start()
    (found,) = await again.find()
    assert (found.desktop_id, found.address) == ("one", made.address)
    assert abs(found.created_at - made.created_at) < 60
    await again.destroy("one")
    await again.close()
    assert await provider.find() == []


async def test_what_a_killed_process_left_is_removed(daemon: Any, tmp_path: Path) -> None:
    config = settings()
    command = [sys.executable, "-c", MAKER, config.model_dump_json(), str(tmp_path)]
    maker = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    try:
        assert maker.stdout is not None
        assert await maker.stdout.readline() == b"made\n"
        (folder,) = tmp_path.iterdir()
        beside = PrivateProvider(
            "docker", lambda root: docker_provider(config, root), base=tmp_path
        )
        await beside.start()  # the maker runs: its desktop stays
        assert len(labelled(daemon, folder / "d")) == 2
        await beside.close()
    finally:
        maker.kill()
        await maker.wait()
    fresh = PrivateProvider("docker", lambda root: docker_provider(config, root), base=tmp_path)
    await fresh.start()
    assert labelled(daemon, folder / "d") == []
    await fresh.close()
    assert list(tmp_path.iterdir()) == []


async def test_nobody_elses_container_is_touched(
    provider: DockerProvider, daemon: Any, tmp_path: Path
) -> None:
    image, command = os.environ["DART_DOCKER_IMAGE"], ["sleep", "3600"]
    await provider.create("one")
    prefix = labelled(daemon, tmp_path)[0].name.removesuffix("one")
    others = [
        daemon.containers.run(image, command, detach=True, name=f"{prefix}two"),
        daemon.containers.run(
            image, command, detach=True, labels={OWNER: "somebody", DESKTOP: "three"}
        ),
    ]
    try:
        assert [desktop.desktop_id for desktop in await provider.find()] == ["one"]
        with pytest.raises(EnvError, match="already in use"):
            await provider.create("two")  # its name is taken by somebody's container
        for name in ("one", "two", "three"):
            await provider.destroy(name)
        assert await provider.find() == []
        for other in others:
            other.reload()
            assert other.status == "running"
    finally:
        for other in others:
            other.remove(force=True)


async def test_a_container_that_ends_is_an_error_and_is_found_so(
    provider: DockerProvider, daemon: Any, tmp_path: Path
) -> None:
    desktop = await provider.create("one")
    client = GuestClient(desktop.address)
    assert (await client.health())["width"] == 800
    labelled(daemon, tmp_path)[0].kill()
    with pytest.raises(EnvError):
        await client.health()
    await client.close()
    assert await provider.usage("one") is None
    assert [one.is_running for one in await provider.find()] == [False]
    await provider.destroy("one")
    assert daemon.containers.list(all=True, filters={"label": f"{DESKTOP}=one"}) == []


async def test_one_that_never_gets_ready_says_what_it_said(daemon: Any, tmp_path: Path) -> None:
    failing = docker_provider(settings(docker_env=["SCREEN_WIDTH=many"]), tmp_path)
    await failing.start()
    with pytest.raises(EnvError, match=r"exit code 2(?s:.*)invalid int value: 'many'"):
        await failing.create("one")
    await failing.close()
    deaf = docker_provider(settings(docker_guest_port=5999, docker_boot_s=3), tmp_path)
    await deaf.start()
    with pytest.raises(EnvError, match="not ready within 3 s"):
        await deaf.create("one")
    await deaf.close()
    assert labelled(daemon, tmp_path) == []


async def test_a_start_that_is_given_up_leaves_nothing(
    provider: DockerProvider, daemon: Any, tmp_path: Path
) -> None:
    start = asyncio.create_task(provider.create("one"))
    async with asyncio.timeout(60):
        while len(labelled(daemon, tmp_path)) < 2:  # the network, and now the container
            await asyncio.sleep(0.01)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert len(labelled(daemon, tmp_path)) == 1


async def test_what_it_writes_ends_at_a_size_and_not_on_the_daemons_disk(
    provider: DockerProvider, daemon: Any, tmp_path: Path
) -> None:
    tasks, task = mini_tasks(), Task(task_id="desktop-mini/make-folder", seed=1)
    small = docker_provider(settings(docker_disk_mb=16), tmp_path)
    pool = DesktopPool(small, max_taken=2, spares=0)
    cluster = DesktopCluster(pool, tasks, num_envs=2, pace=Pace(react_s=0.1, settle_s=0.1))
    await cluster.start()
    assert small.warnings() == provider.warnings() == PODMAN_WARNINGS[is_podman(daemon)]
    try:
        async with cluster.lease(task) as fine:
            await fine.reset(task)
            async with cluster.lease(task) as env:
                await env.reset(task)
                done = await env._client.execute(FILL, shell=True)
                assert done.output.split() == []
                assert done.error.count("No space left") == 4
                assert await env._client.act(Click(point=Point(5, 5))) is None
                with pytest.raises(EnvError, match="No space"):
                    await env._guard(env._client.write_file("small", b"1" * 5000))
                sizes = [each.get("SizeRw", 0) for each in daemon.api.containers(size=True)]
                assert max(sizes) < 1 << 20
            assert cluster.stats().num_replaced == 1
            await fine._client.write_file("small", b"1" * 5000)
    finally:
        await cluster.close()


async def test_it_is_confined(provider: DockerProvider, daemon: Any, tmp_path: Path) -> None:
    desktops = await asyncio.gather(provider.create("one"), provider.create("two"))
    one, two = sorted(labelled(daemon, tmp_path)[:2], key=lambda item: item.labels[DESKTOP])
    limits = one.attrs["HostConfig"]
    assert (limits["Memory"], limits["NanoCpus"]) == (2048 << 20, 2_000_000_000)
    (binding,) = one.attrs["NetworkSettings"]["Ports"]["5000/tcp"]
    assert binding["HostIp"] == "127.0.0.1"
    (network,) = two.attrs["NetworkSettings"]["Networks"].values()
    client = GuestClient(desktops[0].address)
    reach = "timeout 3 bash -c 'exec 3<>/dev/tcp/{}/5000'"
    own = await client.execute(reach.format("127.0.0.1"), shell=True)
    other = await client.execute(reach.format(network["IPAddress"]), shell=True)
    assert (own.returncode, other.returncode == 0) == (0, is_podman(daemon))
    caps = await client.execute("grep CapBnd /proc/self/status; id -u", shell=True)
    assert caps.output.split() == ["CapBnd:", "0" * 16, "1000"]
    await client.close()


async def test_what_is_missing_is_said() -> None:
    assert "2048 MB each" in SUITE.check_machine(settings())
    with pytest.raises(SetupError, match="the daemon has no image not-there: docker pull"):
        SUITE.check_machine(settings(docker_image="not-there"))
