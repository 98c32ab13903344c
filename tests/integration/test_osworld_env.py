"""OSWorld's set-up steps and evaluation over the guest API; the evaluator's process is a script here."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shlex
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

from dart_gui.env.browser.chromium import find_chromium
from dart_gui.env.desktop import guest_programs
from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.env import Pace
from dart_gui.env.desktop.screen import Window
from dart_gui.env.osworld import chrome
from dart_gui.env.osworld.door import Door
from dart_gui.env.osworld.downloads import Downloads
from dart_gui.env.osworld.env import OsworldEnv, OsworldSettings
from dart_gui.env.osworld.evaluate import EvaluatorSettings
from dart_gui.env.osworld.setup import fill_history
from dart_gui.env.osworld.tasks import OsworldFolder
from dart_gui.env.providers.fake import FakeProvider
from dart_gui.errors import EnvError
from dart_gui.fakes import FakeClock
from dart_gui.types import Press, Task

TASK = Task(task_id="osworld/os/a", seed=0)
RESULT = {"type": "vm_command_line", "command": ["true"]}
EVALUATOR: dict[str, Any] = {"func": "exact_match", "result": RESULT}
Make = Callable[..., OsworldEnv]


@pytest.fixture
def provider(tmp_path: Path) -> FakeProvider:
    return FakeProvider(tmp_path / "desktops")


@pytest.fixture
async def client(provider: FakeProvider) -> AsyncIterator[GuestClient]:
    await provider.start()
    desktop = await provider.create("one")
    made = GuestClient(desktop.address)
    yield made
    await made.close()
    await provider.destroy("one")


async def no_sleep(_: float) -> None:
    pass


@pytest.fixture
async def make(tmp_path: Path, client: GuestClient) -> AsyncIterator[Make]:
    """An environment with one task, and an evaluator that is the given shell script."""
    envs: list[OsworldEnv] = []

    def made(
        *steps: dict[str, Any],
        evaluator: dict[str, Any] = EVALUATOR,
        script: str = "cat >/dev/null; echo '{\"score\": 1}'",
        timeout_s: float = 60.0,
    ) -> OsworldEnv:
        path = tmp_path / "evaluation_examples" / "examples" / "os" / "a.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = {"instruction": "Do it.", "config": list(steps), "evaluator": evaluator}
        path.write_text(json.dumps(text))
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        tasks = OsworldFolder(tmp_path / "evaluation_examples")
        settings = OsworldSettings(
            folder=tasks.folder,
            downloads=Downloads(tmp_path / "cache", offline=True),
            evaluator=EvaluatorSettings(python=python, timeout_s=timeout_s, memory_mb=4096),
            password="secret",
        )
        env = OsworldEnv(
            client, tasks, pace=Pace(react_s=0, wait_s=0), settings=settings, sleep=no_sleep
        )
        envs.append(env)
        return env

    yield made
    for env in envs:
        await env.close()


def step(kind: str, **parameters: Any) -> dict[str, Any]:
    return {"type": kind, "parameters": parameters}


async def cache(tmp_path: Path, url: str, content: bytes) -> None:
    """As a mirror leaves it."""
    downloads = Downloads(tmp_path / "cache")
    partial = downloads._partial(url)
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(content)
    downloads._keep(url)


async def test_files_come_from_the_cache_and_from_the_folder(
    make: Make, client: GuestClient, tmp_path: Path
) -> None:
    await cache(tmp_path, "http://h/1", b"one")
    (tmp_path / "two").write_bytes(b"two")
    env = make(
        step("download", files=[{"url": "http://h/1", "path": "one.txt"}]),
        step("upload_file", files=[{"local_path": "two", "path": "two.txt"}]),
    )
    assert (await env.reset(TASK)).instruction == "Do it."
    assert await client.read_file("one.txt") == b"one"
    assert await client.read_file("two.txt") == b"two"


async def test_a_file_that_is_not_mirrored_is_infrastructure(make: Make) -> None:
    env = make(step("download", files=[{"url": "http://h/1", "path": "one.txt"}]))
    with pytest.raises(EnvError, match="dart-gui osworld mirror"):
        await env.reset(TASK)
    assert env.is_broken


async def test_commands_have_placeholders_output_files_and_conditions(
    make: Make, client: GuestClient
) -> None:
    count = "echo x >> n; wc -l < n"
    env = make(
        step(
            "execute", command="echo {CLIENT_PASSWORD} {SCREEN_WIDTH_HALF}", shell=True, stdout="o"
        ),
        step("command", command=["sh", "-c", "echo bad >&2; exit 3"], stderr="e"),
        step("execute", command=count, shell=True, until={"stdout": "3"}),
        step("activate_window", window_name="not there"),
        step("sleep", seconds=3),
    )
    await env.reset(TASK)
    assert (env._scratch / "o").read_text() == "secret 160\n"
    assert (env._scratch / "e").read_text() == "bad\n"
    assert (await client.read_file("n")) == b"x\n" * 3
    await env.close()
    assert not env._scratch.exists()


async def test_programs_are_started_and_the_wallpaper_is_set(
    make: Make, client: GuestClient, tmp_path: Path
) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    (tmp_path / "w.png").write_bytes(picture.getvalue())
    env = make(
        step("upload_file", files=[{"local_path": "w.png", "path": "w.png"}]),
        step("change_wallpaper", path="w.png"),
        step("launch", command="touch launched"),
        step("execute", command="test -f launched", shell=True, until={"returncode": 0}),
        step(
            "execute_with_verification",
            command="touch done",
            shell=True,
            verification={"command_success": "test -f done"},
        ),
    )
    await env.reset(TASK)
    assert (await client.relay("POST", "/wallpaper")).body == picture.getvalue()


async def test_files_are_opened_and_windows_awaited_and_closed(
    make: Make, provider: FakeProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opener = tmp_path / "bin" / "xdg-open"
    opener.parent.mkdir()
    opener.write_text('#!/bin/sh\necho "$1" > opened\n')
    opener.chmod(0o755)
    monkeypatch.setenv("PATH", f"{opener.parent}:{os.environ['PATH']}")
    (tmp_path / "notes.txt").write_text("n")
    provider.screen("one").open_windows = [window(1, "notes.txt - Editor"), window(2, "Tips")]
    env = make(
        step("upload_file", files=[{"local_path": "notes.txt", "path": "notes.txt"}]),
        step("open", path="notes.txt"),
        step("execute", command="cat opened", shell=True, until={"stdout": "notes.txt"}),
        step("wait", window_name="notes.txt", stable_ms=10, timeout_ms=60_000),
        step("close_window", window_name="Tips", strict=True),
        step("close_window", window_name="not there"),
    )
    await env.reset(TASK)
    assert [w.title for w in provider.screen("one").windows()] == ["notes.txt - Editor"]
    late = make(step("wait", window_name="Tips", stable_ms=0, timeout_ms=50))
    with pytest.raises(EnvError, match="Tips"):
        await late.reset(TASK)


def window(window_id: int, title: str) -> Window:
    kind = ("editor", "Editor")
    place = {"x": 0, "y": 0, "width": 100, "height": 100}
    is_active = window_id == 1
    return Window(window_id=window_id, title=title, wm_class=kind, is_active=is_active, **place)


async def test_a_program_that_is_not_there_is_infrastructure(make: Make) -> None:
    with pytest.raises(EnvError, match="no-such-program"):
        await make(step("launch", command=["no-such-program"])).reset(TASK)


PRESS = "import no_such_module_here; import time; no_such_module_here.hotkey('ctrl', 's')"


async def test_a_module_that_postconfig_takes_is_missed_before_the_episode(make: Make) -> None:
    press = step("execute", command=["python3", "-c", PRESS])
    env = make(evaluator=EVALUATOR | {"postconfig": [press]})
    with pytest.raises(EnvError, match=r"No module named 'no_such_module_here'.*pip install"):
        await env.reset(TASK)
    assert env.is_broken


async def test_a_missing_interpreter_says_what_to_install(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EnvError, match=r"steps of the task run python: .*pip install"):
        await make(step("execute", command=["python", "-c", "pass"])).reset(TASK)


@pytest.mark.parametrize(
    "command",
    [
        {"command": ["python3", "it.py"]},
        {"command": "cd .; python3 -c 'import no_such_module_here'", "shell": True},
        {"command": "PATH=/nowhere; python3 it.py", "shell": True},
    ],
)
async def test_a_step_that_the_desktop_cannot_run_is_infrastructure(
    make: Make, client: GuestClient, command: dict[str, Any]
) -> None:
    await client.write_file("it.py", b"import no_such_module_here")
    with pytest.raises(EnvError, match=r"(No module named|not found).*pip install"):
        await make(step("execute", **command)).reset(TASK)


async def test_a_step_that_fails_otherwise_goes_on_as_published(make: Make) -> None:
    env = make(
        step("execute", command=["python3", "-c", "import json; raise SystemExit(1)"]),
        step("execute", command=["python3", "not-there.py"]),
        step("execute", command="no-such-program-here", shell=True),
    )
    assert (await env.reset(TASK)).instruction == "Do it."


@pytest.mark.browser
async def test_tabs_of_a_real_chromium(client: GuestClient, tmp_path: Path) -> None:
    profile = tmp_path / "profile"
    chromium = await asyncio.create_subprocess_exec(
        find_chromium().path,
        *("--headless", "--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={profile}"),
        "data:text/html,first",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # Debian's command is a script around the browser
    )
    try:
        async with asyncio.timeout(120):
            while not (profile / "DevToolsActivePort").exists():
                await asyncio.sleep(0.05)
        port = int((profile / "DevToolsActivePort").read_text().split()[0])
        pages = ["data:text/html,one", "data:text/html,two?a=1&b=2"]
        await chrome.open_tabs(client, pages, ports=[1, port])
        assert await urls_of(port) == sorted(pages)
        await chrome.close_tabs(client, [pages[0], "http://not.there/"], ports=[port])
        assert await urls_of(port) == pages[1:]
    finally:
        os.killpg(chromium.pid, signal.SIGKILL)
        await chromium.wait()


async def urls_of(port: int) -> list[str]:
    """Once none is a tab that has not begun to load, or is closing."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(60):
        while True:
            async with session.get(f"http://localhost:{port}/json/list") as answer:
                urls = sorted(t["url"] for t in await answer.json() if t["type"] == "page")
            if not any(url in ("", "about:blank", "data:text/html,first") for url in urls):
                return urls
            await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (step("login", platform="googledrive"), "Google account"),
        (step("googledrive", operation=["delete"]), "Google account"),
        (step("proxy"), "proxy provider"),
        (step("tidy_desktop"), "nothing behind it"),
        (step("act"), "nothing behind it"),
        (step("replay"), "nothing behind it"),
        (step("execute", command=["true"], stdout="../out"), "outside of the trajectory"),
    ],
)
async def test_steps_that_cannot_be_done_say_what_is_missing(
    make: Make, made: dict[str, Any], says: str
) -> None:
    with pytest.raises(EnvError, match=says):
        await make(made).reset(TASK)


def test_history_is_in_chromes_time(tmp_path: Path) -> None:
    database = tmp_path / "h"
    with sqlite3.connect(database) as connection:
        connection.execute(
            "CREATE TABLE urls (id INTEGER PRIMARY KEY, url, title, visit_count, typed_count, "
            "last_visit_time, hidden)"
        )
        connection.execute(
            "CREATE TABLE visits (url, visit_time, from_visit, transition, segment_id, visit_duration)"
        )
    connection.close()
    visit = {"url": "http://u", "title": "t", "visit_time_from_now_in_seconds": 60}
    fill_history(database, [visit, visit], now=60.0)  # so the visit was when Unix time began
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT url, visit_time FROM visits").fetchall()
    connection.close()
    assert rows == [(1, 11_644_473_600_000_000), (2, 11_644_473_600_000_000)]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("cat >/dev/null; kill -9 $$", "ended with -9"),
        ("cat >/dev/null; echo oops >&2; exit 1", "oops"),
        ("cat >/dev/null; echo garbage", "garbage"),
        ("cat >/dev/null; echo '[1]'", "instead of a JSON object"),
        ("cat >/dev/null; echo '{\"score\": 7}'", r"expected a number in \[0, 1\]"),
        ("cat >/dev/null; echo '{\"score\": NaN}'", r"expected a number in \[0, 1\]"),
        ("cat >/dev/null; echo '{\"score\": null}'", "expected a score"),
        ('cat >/dev/null; echo \'{"error": "KeyError: x"}\'', "KeyError: x"),
        ("exit 0", "instead of a JSON object"),
    ],
)
async def test_an_evaluator_that_fails_is_never_a_zero(make: Make, script: str, says: str) -> None:
    env = make(script=script)
    await env.reset(TASK)
    with pytest.raises(EnvError, match=says):
        await env.evaluate()


async def test_an_evaluator_that_hangs_ends_with_its_children(make: Make, tmp_path: Path) -> None:
    env = make(script=f"cat >/dev/null; sleep 600 & echo $! > {tmp_path}/pid; wait", timeout_s=2.0)
    await env.reset(TASK)
    with pytest.raises(EnvError, match="did not end within 2 s"):
        await env.evaluate()
    state = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"


async def test_without_the_evaluator_the_error_says_how_to_get_it(
    make: Make, tmp_path: Path
) -> None:
    env = make()
    (tmp_path / "python").unlink()
    await env.reset(TASK)
    with pytest.raises(EnvError, match=r"setup_osworld\.py"):
        await env.evaluate()


async def test_expected_files_are_placed_and_cannot_lead_out(make: Make, tmp_path: Path) -> None:
    await cache(tmp_path, "http://h/gold", b"gold")
    gold = {"type": "cloud_file", "path": "http://h/gold", "dest": "gold.txt"}
    show = 'cat >/dev/null; test "$(cat gold.txt)" = gold && echo \'{"score": 0.5}\''
    env = make(evaluator=EVALUATOR | {"expected": gold}, script=show)
    await env.reset(TASK)
    evaluation = await env.evaluate()
    assert (evaluation.reward, evaluation.success) == (0.5, False)
    out = make(evaluator=EVALUATOR | {"expected": gold | {"dest": "../gold.txt"}})
    await out.reset(TASK)
    with pytest.raises(EnvError, match="out of its folder"):
        await out.evaluate()


@pytest.mark.parametrize(
    ("func", "declared", "reward"),
    [
        ("infeasible", True, 1.0),
        ("infeasible", False, 0.0),
        ("exact_match", True, 0.0),
        ("exact_match", False, 1.0),
    ],
)
async def test_infeasible_is_only_what_the_agent_says_is(
    make: Make, func: str, declared: bool, reward: float
) -> None:
    env = make(evaluator=EVALUATOR | {"func": func})
    await env.reset(TASK)
    if declared:
        env.declare_infeasible()
    assert (await env.evaluate()).reward == reward


@pytest.mark.parametrize(
    ("getter", "postconfig", "waits"),
    [
        ("enable_do_not_track", [], [9.0]),  # 12 s since the last action, 3 of which have passed
        ("cookie_data", [], [29.0]),
        ("vm_command_line", [], [0.0]),
        # Chrome writes all but cookies when it is ended.
        ("enable_do_not_track", [step("launch", command=["true"])], [0.0]),
        ("cookie_data", [step("launch", command=["true"])], [29.0]),
    ],
)
async def test_chrome_is_given_the_time_that_it_takes_to_write_its_profile(
    make: Make, getter: str, postconfig: list[dict[str, Any]], waits: list[float]
) -> None:
    env = make(evaluator=EVALUATOR | {"result": {"type": getter}, "postconfig": postconfig})
    clock = FakeClock()
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    env._clock, env._sleep = clock, sleep
    await env.reset(TASK)
    clock.advance(100)
    await env.step(Press(key="a"))
    clock.advance(3)
    assert (await env.evaluate()).reward == 1.0
    assert slept == waits


async def test_a_desktop_that_is_gone_is_not_a_missing_file(
    make: Make, client: GuestClient
) -> None:
    env = make()
    await env.reset(TASK)
    await client._call("GET", "/health")
    assert client.address.socket is not None
    client.address.socket.unlink()
    await client.close()
    with pytest.raises(EnvError, match="cannot be reached"):
        await env.evaluate()


def asks(route: str, body: dict[str, Any] | None) -> str:
    """An evaluator that asks the desktop as a getter does, and scores 0 whatever the answer."""
    code = f"""
import base64, json, sys, urllib.error, urllib.request
request = json.load(sys.stdin)
user, _, place = request["host"].rpartition("@")
headers = {{
    "Authorization": "Basic " + base64.b64encode(user.encode()).decode(),
    "Content-Type": "application/json",
}}
url = "http://%s:%s{route}" % (place, request["port"])
data = {json.dumps(body)!r}.encode() if {body is not None} else None
try:
    urllib.request.urlopen(urllib.request.Request(url, data=data, headers=headers)).read()
except urllib.error.HTTPError as error:
    print(error.code, file=sys.stderr)
print(json.dumps({{"score": 0}}))
"""
    return f"exec {sys.executable} -c {shlex.quote(code)}"


@pytest.mark.parametrize(
    ("route", "body", "says"),
    [
        ("/accessibility", None, "/accessibility was answered with 501: .*install python3-gi"),
        (
            "/execute",
            {"command": ["sleep", "600"], "timeout": 0.3},
            "/execute was answered with 500: .*timed out after 0.3 seconds",
        ),
        (
            "/run_bash_script",
            {"script": "sleep 600", "timeout": 0.3},
            "/run_bash_script was answered with 500: .*timed out after 0.3 seconds",
        ),
        ("/execute", {"command": ["no-such-program-here"]}, None),
        ("/execute", {"command": ["false"]}, None),
        ("/list_directory", {"path": "nowhere"}, None),
        ("/file", {}, None),
    ],
)
async def test_what_a_desktop_cannot_tell_is_not_what_the_agent_did(
    make: Make,
    route: str,
    body: dict[str, Any] | None,
    says: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree = tmp_path / "tree.py"
    tree.write_text('import sys; sys.exit("no bindings: install python3-gi")')
    monkeypatch.setattr(guest_programs, "_TREE", tree)
    env = make(script=asks(route, body))
    await env.reset(TASK)
    if says is None:
        assert (await env.evaluate()).reward == 0.0
        return
    with pytest.raises(EnvError, match=f"did not see the desktop: {says}"):
        await env.evaluate()


async def test_the_door_is_for_who_has_its_password(client: GuestClient) -> None:
    async with Door(client, answer_s=30) as door:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{door.port}/health") as answer:
                assert answer.status == 401
            press = {"kind": "press", "key": "a"}
            async with session.post(f"http://127.0.0.1:{door.port}/action", json=press) as answer:
                assert answer.status == 401
            async with session.get(f"http://{door.host}:{door.port}/health") as answer:
                assert answer.status == 200
        assert door.failure is None
