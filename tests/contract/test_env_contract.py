"""What every environment promises, asked of the scripted one, of MiniWoB++, of one's own pages and of
desktops.

The checks themselves are shipped; that they find what is broken is shown in ``test_env_check``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dart_gui.config import EnvConfig
from dart_gui.env.browser.cluster import BrowserCluster
from dart_gui.env.contract import (
    CLUSTER_CHECKS,
    TASK_CHECKS,
    Check,
    a_closed_cluster_leases_nothing,
    examine,
    title_of,
)
from dart_gui.env.probing import Probe
from dart_gui.env.protocol import EnvCluster
from dart_gui.env.suites import get_suite
from dart_gui.errors import ConfigError
from dart_gui.fakes import FakeClock, FakeCluster
from dart_gui.types import Hover, Point, Task

OWN_SUITE = Path(__file__).resolve().parents[2] / "examples" / "own_suite" / "shop.py"
CONFIG = EnvConfig(num_envs=2, action_ms=50, wait_ms=50, timeout_s=60.0)


def fake() -> tuple[EnvCluster, str]:
    known = get_suite("miniwob").task_ids.__contains__
    return FakeCluster(num_envs=2, knows=known), "miniwob/enter-text"


def miniwob() -> tuple[EnvCluster, str]:
    return get_suite("miniwob").open_cluster(CONFIG), "miniwob/enter-text"


def own_pages() -> tuple[EnvCluster, str]:
    return get_suite(f"{OWN_SUITE}:SUITE").open_cluster(CONFIG), "shop/order"


def desktops() -> tuple[EnvCluster, str]:
    config = EnvConfig(num_envs=2, desktop_width=480, desktop_height=320, wait_ms=50)
    return get_suite("desktop-mini").open_cluster(config), "desktop-mini/rename-file"


Made = Callable[[], tuple[EnvCluster, str]]
IMPLEMENTATIONS = [
    fake,
    pytest.param(miniwob, marks=pytest.mark.browser),
    pytest.param(own_pages, marks=pytest.mark.browser),
    pytest.param(desktops, marks=pytest.mark.desktop),
]
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
async def probe(request: pytest.FixtureRequest) -> AsyncIterator[Probe]:
    made: Made = request.param
    cluster, task_id = made()
    await cluster.start()
    task = Task(task_id=task_id, seed=7)
    if made is fake:
        yield Probe(cluster=cluster, task=task, sleep=FakeClock().sleep)
    else:
        yield Probe(cluster=cluster, task=task)
    await cluster.close()


@pytest.mark.parametrize("check", [*TASK_CHECKS, *CLUSTER_CHECKS[:-1]], ids=title_of)
async def test_the_contract(probe: Probe, check: Check) -> None:
    verdict = await examine(check, probe)
    assert verdict.ok, verdict.text


async def test_the_errors_say_what_happened(probe: Probe) -> None:
    async with probe.episode() as (env, _):
        with pytest.raises(RuntimeError, match="single use"):
            await env.reset(probe.task)
    async with probe.cluster.lease() as env:
        with pytest.raises(RuntimeError, match=r"before reset\(\)"):
            await env.step(Hover(point=Point(1, 1)))
        with pytest.raises(ConfigError, match="which-is-none"):
            await env.reset(Task(task_id="which-is-none", seed=0))


async def test_a_closed_cluster_leases_nothing() -> None:
    for closed in (FakeCluster(), BrowserCluster(EnvConfig())):
        probe = Probe(cluster=closed, task=Task(task_id="miniwob/enter-text", seed=0))
        verdict = await examine(a_closed_cluster_leases_nothing, probe)
        assert verdict.ok, verdict.text
