"""Every task of the suite on real desktops: its solution earns 1, its near miss 0."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dart_gui.config import EnvConfig
from dart_gui.env.desktop.cluster import DesktopCluster
from dart_gui.env.desktop.env import Pace
from dart_gui.env.desktop.mini import mini_tasks
from dart_gui.env.desktop.pool import DesktopPool
from dart_gui.env.desktop.suite import SUITE, programs_of
from dart_gui.env.providers.docker import docker_provider
from dart_gui.env.providers.protocol import Provider
from dart_gui.env.providers.xvfb import XvfbProvider
from dart_gui.types import Task

TASKS = mini_tasks()
# A busy machine is slow to react; where something changes at once, none of this is waited for.
PACE = Pace(react_s=6.0, settle_s=0.15, settle_limit_s=30.0)
pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
PROVIDERS = [
    pytest.param("xvfb", marks=pytest.mark.desktop),
    pytest.param("docker", marks=pytest.mark.docker(apps="all")),
]


def make(kind: str, root: Path) -> Provider:
    if kind == "xvfb":
        return XvfbProvider(root, width=800, height=500)
    config = EnvConfig(
        docker_host=os.environ["DART_DOCKER_HOST"],
        docker_image=os.environ["DART_DOCKER_IMAGE"],
        desktop_width=800,
        desktop_height=500,
    )
    return docker_provider(config, root)


@pytest.fixture(scope="module", params=PROVIDERS)
async def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[DesktopCluster]:
    root = tmp_path_factory.mktemp("d")
    pool = DesktopPool(make(request.param, root), max_taken=1, spares=2)
    made = DesktopCluster(pool, TASKS, num_envs=1, pace=PACE)
    await made.start()
    yield made
    await made.close()
    again = make(request.param, root)
    await again.start()
    assert await again.find() == []
    await again.close()


@pytest.mark.parametrize("way", ["solution", "near_miss"])
@pytest.mark.parametrize("task_id", TASKS.task_ids)
async def test_solution_and_near_miss(
    cluster: DesktopCluster, task_id: str, way: str, request: pytest.FixtureRequest
) -> None:
    task = Task(task_id=task_id, seed=11 if way == "solution" else 12)
    here = request.node.callspec.params["cluster"] == "xvfb"
    needed = programs_of(TASKS, task_id) if here else ()
    if missing := [program for program in needed if shutil.which(program) is None]:
        pytest.skip(f"the task needs {', '.join(missing)}")
    actions = getattr(TASKS.instantiate(task), way)
    async with cluster.lease(task) as env:
        await env.reset(task)
        for action in actions:
            assert (await env.step(action)).action_error is None
        assert (await env.evaluate()).reward == (1.0 if way == "solution" else 0.0)


async def test_doing_nothing_earns_nothing(cluster: DesktopCluster) -> None:
    for task_id in SUITE.default_tasks[::5]:
        task = Task(task_id=task_id, seed=11)
        async with cluster.lease(task) as env:
            await env.reset(task)
            assert (await env.evaluate()).reward == 0.0
