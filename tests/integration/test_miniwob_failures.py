"""What breaks is replaced, and only the episode that it broke is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from dart_gui.config import EnvConfig
from dart_gui.env.browser.cluster import BrowserCluster
from dart_gui.env.browser.page_env import PageEnv
from dart_gui.errors import EnvError, SetupError
from dart_gui.types import Click, Hover, Point, Task

pytestmark = pytest.mark.browser

TASK = Task(task_id="miniwob/click-test-2", seed=3)
ANYWHERE = Hover(point=Point(80, 205))


@pytest.fixture
async def cluster() -> AsyncIterator[BrowserCluster]:
    made = BrowserCluster(EnvConfig(num_envs=2, timeout_s=8.0))
    await made.start()
    yield made
    await made.close()


async def assert_works(cluster: BrowserCluster) -> None:
    for _ in range(2):
        async with cluster.lease() as one, cluster.lease() as other:
            first, second = await asyncio.gather(one.reset(TASK), other.reset(TASK))
            assert first == second
            assert (await one.step(ANYWHERE)).action_error is None


async def step_until_it_fails(env: PageEnv) -> None:
    while True:
        await env.step(ANYWHERE)


async def on_click(env: PageEnv, script: str) -> None:
    await env.slot.page.evaluate(f"() => addEventListener('mousedown', () => {{ {script} }}, true)")


async def test_a_page_that_hangs_is_replaced(cluster: BrowserCluster) -> None:
    async with cluster.lease() as env, cluster.lease() as sibling:
        await asyncio.gather(env.reset(TASK), sibling.reset(TASK))
        await on_click(env, "while (true);")
        hung = asyncio.create_task(env.step(Click(point=Point(80, 205))))
        assert (await sibling.step(ANYWHERE)).action_error is None
        with pytest.raises(EnvError, match=r"gave no answer in 8 s"):
            await hung
        with pytest.raises(EnvError, match="broke earlier"):
            await env.evaluate()
        assert not (await sibling.evaluate()).success
    assert cluster.stats().num_replaced == 1
    await assert_works(cluster)
    assert cluster.stats().num_replaced == 1


async def test_a_page_that_crashes_is_replaced(cluster: BrowserCluster) -> None:
    async with cluster.lease() as env:
        await env.reset(TASK)
        crash = asyncio.create_task(env.slot.page.goto("chrome://crash"))
        with pytest.raises(EnvError):
            await step_until_it_fails(env)
        crash.cancel()
        await asyncio.gather(crash, return_exceptions=True)
    await assert_works(cluster)
    assert cluster.stats().num_replaced == 1


async def test_a_page_that_is_closed_is_replaced(cluster: BrowserCluster) -> None:
    async with cluster.lease() as env:
        await env.reset(TASK)
        await env.slot.page.close()
        with pytest.raises(EnvError):
            await env.step(ANYWHERE)
    await assert_works(cluster)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_browser_that_is_gone_is_launched_again(
    cluster: BrowserCluster, number: signal.Signals
) -> None:
    async with cluster.lease() as env:
        await env.reset(TASK)
        os.kill(env.slot.browser_pid, number)
        with pytest.raises(EnvError):
            await env.step(ANYWHERE)
    await assert_works(cluster)


async def test_a_cancelled_step_condemns_its_page(cluster: BrowserCluster) -> None:
    async with cluster.lease() as env:
        await env.reset(TASK)
        await on_click(env, "while (true);")
        step = asyncio.create_task(env.step(Click(point=Point(80, 205))))
        await asyncio.sleep(0.05)
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
    assert cluster.stats().num_replaced == 1
    await assert_works(cluster)


@pytest.mark.parametrize(
    "script",
    [
        "location.href = 'about:blank'",
        "location.reload()",
        "window.open('about:blank')",
        "alert('hello')",
        "document.forms.x.submit()",
    ],
)
async def test_a_page_cannot_be_left(cluster: BrowserCluster, script: str) -> None:
    async with cluster.lease() as env:
        await env.reset(TASK)
        await env.slot.page.evaluate(
            "() => { document.body.insertAdjacentHTML('beforeend', '<form name=x></form>');"
            " globalThis.isSame = true; }"
        )
        await on_click(env, script)
        assert not (await env.step(Click(point=Point(80, 205)))).terminated
        assert await env.slot.page.evaluate("isSame && !WOB_DONE_GLOBAL")
    await assert_works(cluster)
    assert cluster.stats().num_replaced == 0


async def test_a_browser_that_is_none_is_a_setup_error(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="not an executable file"):
        await BrowserCluster(EnvConfig(browser=str(tmp_path / "chromium"))).start()
    with pytest.raises(SetupError, match="did not start"):
        await BrowserCluster(EnvConfig(browser="/bin/false", timeout_s=8.0)).start()


OWNER = """
import asyncio, signal, sys
from dart_gui.config import EnvConfig
from dart_gui.env.browser.cluster import BrowserCluster
from dart_gui.types import Task

async def main():
    cluster = BrowserCluster(EnvConfig(num_envs=2, num_browsers=2))
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    await cluster.start()
    async with cluster.lease() as env, cluster.lease() as other:
        await env.reset(Task(task_id="miniwob/click-test-2", seed=0))
        await other.reset(Task(task_id="miniwob/click-test-2", seed=0))
        print(env.slot.browser_pid, other.slot.browser_pid, flush=True)
        await asked.wait()
    await cluster.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_no_browser_survives_its_owner(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(set(pids)) == 2
        owner.send_signal(number)
        assert owner.wait(20) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def wait_until(condition: Callable[[], bool], deadline_s: float = 20.0) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the browsers are still running"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
