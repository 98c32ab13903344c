"""Pages and sites of one's own in a real Chromium: what they may do, and that they replay."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dart_gui.config import EnvConfig
from dart_gui.env.browser.page_env import PageEnv
from dart_gui.env.browser.web_pages import State, page_suite
from dart_gui.env.contract import check_suite
from dart_gui.env.suites import Suite
from dart_gui.errors import ConfigError, EnvError
from dart_gui.types import Action, Click, Evaluation, Hover, Observation, Point, Press, Task, Wait

pytestmark = pytest.mark.browser

CONFIG = EnvConfig(num_envs=1, timeout_s=60.0)
MIDDLE = Click(point=Point(80, 60))
STYLE = "<style>body { margin: 0 }a, button { display: block; width: 160px; height: 120px }</style>"
RESET = "window.dartTask = {reset: () => 'go', state: () => ({done: false, reward: 0})};"


@pytest.fixture
async def play() -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Plays an episode: the observations, the evaluation, and what the page says at the end."""
    clusters = []

    async def episode(
        suite: Suite, *actions: Action, seed: int = 3, says: str = "0"
    ) -> tuple[list[Observation], Evaluation, object]:
        cluster = suite.open_cluster(CONFIG)
        clusters.append(cluster)
        await cluster.start()
        seen = []
        async with cluster.lease() as env:
            assert isinstance(env, PageEnv)
            seen.append(await env.reset(Task(task_id=suite.task_ids[0], seed=seed)))
            for action in actions:
                seen.append(await env.step(action))
            said = await env.slot.page.evaluate(says)
            return seen, await env.evaluate(), said

    yield episode
    for cluster in clusters:
        await cluster.close()


def page(folder: Path, body: str, *, name: str = "a", **more: Any) -> Suite:
    (folder / f"{name}.html").write_text(f"<!DOCTYPE html>{STYLE}{body}")
    return page_suite("own", folder, **more)


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("", r"window.dartTask has no reset\(\)"),
        ("window.dartTask = {reset: () => 'go'};", r"has no state\(\)"),
        ("window.dartTask = {reset() { throw Error('no'); }, state() {}};", "threw Error: no"),
        ("window.dartTask = {reset: () => 7, state() {}};", "returned 7, expected the instruction"),
        ("window.dartTask = {reset: () => ' ', state() {}};", "returned ' ', expected"),
    ],
)
async def test_a_page_without_the_contract_is_a_configuration_error(
    tmp_path: Path, play: Callable[..., Awaitable[Any]], script: str, text: str
) -> None:
    with pytest.raises(ConfigError, match=rf"own/a \(file://.*a\.html\): .*{text}"):
        await play(page(tmp_path, f"<script>{script}</script>"))


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("7", "returned 7, expected an object with done"),
        ("({reward: 1})", "expected an object with done"),
        ("({done: 'no'})", "expected an object with done"),
        ("nothing.at.all", r"dartTask.state\(\) threw ReferenceError"),
        ("({done: false})", r"the reward is None, expected a number in \[0, 1\]"),
        ("({done: false, reward: 10})", r"the reward is 10, expected a number"),
    ],
)
async def test_a_state_that_makes_no_sense_is_not_the_policys_fault(
    tmp_path: Path, play: Callable[..., Awaitable[Any]], state: str, text: str
) -> None:
    script = f"window.dartTask = {{reset: () => 'go', state: () => {state}}};"
    with pytest.raises(EnvError, match=text):
        await play(page(tmp_path, f"<script>{script}</script>"))


async def test_a_reward_function_that_fails_is_not_the_policys_fault(
    tmp_path: Path, play: Callable[..., Awaitable[Any]]
) -> None:
    def reward(task: Task, state: State) -> float:
        return float(state["nothing"])

    suite = page(tmp_path, f"<script>{RESET}</script>", reward=reward)
    with pytest.raises(EnvError, match=r"the reward of own/a \(seed 3\): KeyError: 'nothing'"):
        await play(suite)


async def test_chance_and_storage_are_those_of_the_seed_alone(tmp_path: Path) -> None:
    suite = page(
        tmp_path,
        """<script>window.dartTask = {
        async reset(seed, task) {
          const visits = Number(localStorage.visits ?? 0) + 1;
          localStorage.visits = visits;
          sessionStorage.visits = visits;
          return `${task} ${visits} ${Math.random()} ${performance.now()} ${Date.now()}`;
        },
        state: () => ({done: false, reward: 0}),
        };</script>""",
    )
    cluster = suite.open_cluster(CONFIG)
    await cluster.start()
    said = []
    for seed in (1, 2, 1, 2**31 - 1):
        async with cluster.lease() as env:
            said.append((await env.reset(Task(task_id="own/a", seed=seed))).instruction)
    await cluster.close()
    assert said[0].startswith("a 1 0.")
    assert said[0] == said[2]
    assert len(set(said)) == 3
    assert cluster.stats().num_replaced == 0


async def test_time_stands_still_between_actions(
    tmp_path: Path, play: Callable[..., Awaitable[Any]]
) -> None:
    ticking = f"<script>let n = 0; setInterval(() => n++, 10); {RESET}</script>"
    suite = page(tmp_path, ticking)
    _, _, ticks = await play(suite, Hover(point=Point(1, 1)), says="n")
    assert ticks == 2 * CONFIG.action_ms / 10
    _, _, ticks = await play(suite, Wait(), says="n")
    assert ticks == (CONFIG.action_ms + CONFIG.wait_ms) / 10


async def test_a_link_leads_to_another_page_of_the_folder(
    tmp_path: Path, play: Callable[..., Awaitable[Any]]
) -> None:
    page(
        tmp_path,
        "<h1>B</h1><script>window.dartTask = {reset: () => 'b', state: () => ({done: true, "
        "reward: sessionStorage.from === 'a' && location.search === '?x=1' ? 1 : 0})};</script>",
        name="b",
    )
    suite = page(
        tmp_path,
        f"<a href='b.html?x=1'>B</a><script>sessionStorage.from = 'a'; {RESET}</script>",
        tasks=["a"],
    )
    seen, score, _ = await play(suite, MIDDLE)
    assert [shown.terminated for shown in seen] == [False, True]
    assert {shown.instruction for shown in seen} == {"go"}
    assert score == Evaluation(reward=1.0, success=True)


@pytest.mark.parametrize(
    "leave",
    [
        "location.href = 'about:blank'",
        "location.href = '../other.html'",
        "location.href = 'http://127.0.0.1:9/'",
        "window.open('a.html')",
        "alert('hello')",
    ],
)
async def test_the_folder_cannot_be_left(
    tmp_path: Path, play: Callable[..., Awaitable[Any]], leave: str
) -> None:
    (tmp_path / "other.html").write_text("other")
    (tmp_path / "pages").mkdir()
    suite = page(
        tmp_path / "pages", f'<button onclick="{leave}">x</button><script>{RESET}</script>'
    )
    seen, _, address = await play(suite, MIDDLE, says="location.href")
    assert not seen[-1].terminated
    assert address == (tmp_path / "pages" / "a.html").as_uri()


async def test_pages_that_lead_on_and_on_are_an_error(
    tmp_path: Path, play: Callable[..., Awaitable[Any]]
) -> None:
    suite = page(tmp_path, f"<script>{RESET} location.reload();</script>")
    with pytest.raises(EnvError, match="led through 10 pages and on"):
        await play(suite)


# --- a site --------------------------------------------------------------------------------------

SITE = {
    "/start": "<a href='/list?n=2'>list</a>",
    "/list": "<button onclick=\"fetch('/count').then(r => r.text()).then(t => "
    '{ document.title = t; button.textContent = t; })" id=button>count</button>',
    "/form": "<form method=post action='/posted'><button>send</button></form>",
    "/posted": "<h1>thanks</h1>",
    "/count": "forty-two",
}
SITE_SCRIPT = """
window.dartTask = {
  reset: (seed, task) => `Use the site, ${task}.`,
  state: () => ({done: location.pathname === '/posted', title: document.title}),
};
"""


class Handler(BaseHTTPRequestHandler):
    """Answers late, later each time: what is shown must not depend on it."""

    num_answers = 0

    def do_GET(self) -> None:
        Handler.num_answers += 1
        time.sleep(0.02 * (Handler.num_answers % 5))
        path = self.path.partition("?")[0]
        text = SITE.get(path, "")
        body = (STYLE + text if text.startswith("<") else text).encode()
        self.send_response(200 if text else 404)
        self.send_header("Content-Type", "text/html" if text.startswith("<") else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def site_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def site(url: str, *tasks: str) -> Suite:
    return page_suite(
        "site",
        url,
        tasks={task: task for task in tasks},
        script=SITE_SCRIPT,
        version="1",
        reward=lambda task, state: 1.0 if state["title"] == "forty-two" or state["done"] else 0.0,
    )


async def test_a_site_is_used_by_links_and_answers(
    site_url: str, play: Callable[..., Awaitable[Any]]
) -> None:
    suite = site(site_url, "start")
    actions = (MIDDLE, MIDDLE, Hover(point=Point(1, 1)))
    seen, score, address = await play(suite, *actions, says="location.href")
    assert address == f"{site_url}/list?n=2"
    assert seen[0].instruction == "Use the site, start."
    assert score == Evaluation(reward=1.0, success=True)  # though the task has not terminated
    again, _, _ = await play(suite, *actions)
    assert again == seen


async def test_a_form_that_posts_leads_to_its_answer(
    site_url: str, play: Callable[..., Awaitable[Any]]
) -> None:
    seen, score, address = await play(site(site_url, "form"), MIDDLE, says="location.href")
    assert address == f"{site_url}/posted"
    assert seen[-1].terminated
    assert score.success


async def test_history_leads_back(site_url: str, play: Callable[..., Awaitable[Any]]) -> None:
    back = Press(key="x")
    suite = site(site_url, "start")
    script = SITE_SCRIPT + "addEventListener('keydown', () => history.back());"
    suite = page_suite(
        "site",
        site_url,
        tasks={"start": "start"},
        script=script,
        version="1",
        reward=lambda *_: 0.0,
    )
    _, _, address = await play(suite, MIDDLE, back, says="location.href")
    assert address == f"{site_url}/start"


async def test_a_site_that_is_not_there_is_an_environment_error(
    play: Callable[..., Awaitable[Any]],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(EnvError, match="ERR_CONNECTION_REFUSED"):
        await play(site(f"http://127.0.0.1:{port}", "start"))


async def test_a_suite_that_moves_by_wall_clock_fails_the_check(tmp_path: Path) -> None:
    """A worker has a clock of its own, which nothing holds."""
    suite = page(
        tmp_path,
        """<canvas id=c width=160 height=210></canvas><script>
        const source = 'let n = 0; setInterval(() => postMessage(n++), 5)';
        const worker = new Worker(URL.createObjectURL(new Blob([source])));
        const pen = document.getElementById('c').getContext('2d');
        worker.onmessage = (e) => { pen.fillStyle = `rgb(${e.data % 256}, 0, 0)`;
                                    pen.fillRect(0, 0, 160, 210); };
        window.dartTask = {reset: (seed) => `go ${seed}`, state: () => ({done: false, reward: 0})};
        </script>""",
    )
    broken = {v.check for v in [v async for v in check_suite(suite, CONFIG, ["own/a"])] if not v.ok}
    assert "replays bit exactly" in broken
    assert "close is idempotent" not in broken
