"""What an action does on a real desktop, whichever way it gets there: by our guest's ``POST /action``, or
by the routes that OSWorld publishes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dart_gui.env.desktop.address import Address
from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.cluster import DesktopCluster
from dart_gui.env.desktop.env import DesktopEnv, Pace
from dart_gui.env.desktop.mini import mini_tasks
from dart_gui.env.desktop.pool import DesktopPool
from dart_gui.env.desktop.tasks import TaskFolder
from dart_gui.env.providers.xvfb import XvfbProvider
from dart_gui.errors import EnvError
from dart_gui.types import (
    Action,
    Click,
    Drag,
    Hotkey,
    Hover,
    KeyDown,
    KeyUp,
    Point,
    Press,
    Scroll,
    Task,
    TypeText,
    Wait,
)
from tests.published_guest import PublishedDouble, PublishedSource

pytestmark = [pytest.mark.desktop, pytest.mark.asyncio(loop_scope="module")]
SCRIPTS = (
    "a < b \"c\" \\ $HOME 'x' naïve ß Ж Ω 日本語 العربية 한국어 हिन्दी 😀 ©√ {}[]|!@#%^&*()_+=-:,./?"
)
WINDOW = "Typing"
ELSEWHERE = os.environ.get("DART_GUEST_URL", "")


@pytest.fixture(scope="module")
async def provider(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[XvfbProvider]:
    made = XvfbProvider(tmp_path_factory.mktemp("d"), width=640, height=400)
    await made.start()
    yield made
    for desktop in await made.find():
        await made.destroy(desktop.desktop_id)


@pytest.fixture(scope="module")
async def double(
    provider: XvfbProvider, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[PublishedDouble]:
    desktop = await provider.create("shared")
    socket = tmp_path_factory.mktemp("s") / "guest.sock"
    async with PublishedDouble(desktop.address, socket) as made:
        yield made


@pytest.fixture(scope="module", params=["typed route", "published routes", "another guest"])
async def client(
    request: pytest.FixtureRequest, provider: XvfbProvider, double: PublishedDouble
) -> AsyncIterator[GuestClient]:
    (desktop,) = await provider.find()
    addresses = {"typed route": desktop.address, "published routes": double.address}
    if ELSEWHERE:
        addresses["another guest"] = Address(url=ELSEWHERE)
    if request.param not in addresses:
        pytest.skip(
            "DART_GUEST_URL names no guest server, such as OSWorld's, on a 640 x 400 screen"
        )
    made = GuestClient(addresses[request.param])
    yield made
    await made.close()
    assert "/action" not in double.asked


async def run_in_terminal(client: GuestClient, command: str) -> None:
    await client.execute("rm -f typed up", shell=True)
    await client.launch(["xterm", "-T", WINDOW, "-geometry", "80x20+0+0", "-e", command])
    await client.wait(window_name=WINDOW, min_colors=2, timeout_s=60)


async def typed(client: GuestClient) -> str:
    """What the program in the terminal read, once it has ended."""
    while await client.windows():
        await asyncio.sleep(0.02)
    return (await client.read_file("~/typed") or b"").decode()


async def type_into_terminal(client: GuestClient, *actions: Action) -> str:
    await run_in_terminal(client, "cat > typed")
    for action in actions:
        assert await client.act(action) is None
    await client.act(Press(key="enter"))
    await client.screenshot(stable_s=0.3, timeout_s=30)
    await client.act(Hotkey(keys=("ctrl", "d")))
    return await typed(client)


async def test_a_desktop_is_ready_and_has_a_size(client: GuestClient) -> None:
    assert await client.wait_ready(timeout_s=60) == {"status": "ready", "width": 640, "height": 400}


async def test_what_is_typed_is_what_arrives(client: GuestClient) -> None:
    assert await type_into_terminal(client, TypeText(text=SCRIPTS)) == SCRIPTS + "\n"


async def test_more_characters_than_there_are_keys(client: GuestClient) -> None:
    text = "".join(chr(0x4E00 + i) for i in range(300))
    half = [TypeText(text=text[:150]), TypeText(text=text[150:])]
    assert await type_into_terminal(client, *half) == text + "\n"


async def test_an_editor_gets_text_that_is_saved(client: GuestClient) -> None:
    if not shutil.which("mousepad"):
        pytest.skip("mousepad is not installed")
    text = "Größe\tπ ≈ 3 · Привет, 世界\nline «two» ✓"
    await client.execute("rm -f note.txt; touch note.txt", shell=True)
    await client.launch(["mousepad", "note.txt"])
    await client.wait(window_name="note.txt", min_colors=16, stable_s=0.3, timeout_s=120)
    assert await client.act(TypeText(text=text)) is None
    await client.screenshot(stable_s=0.3, react_s=5, timeout_s=30)
    await client.act(Hotkey(keys=("ctrl", "s")))
    while not await client.read_file("~/note.txt"):
        await asyncio.sleep(0.05)
    assert (await client.read_file("~/note.txt") or b"").decode().rstrip("\n") == text
    await client.setup("/setup/close_window", {"window_name": "note.txt"})
    while await client.windows():
        await asyncio.sleep(0.02)


async def test_a_file_is_dropped_on_a_folder(client: GuestClient) -> None:
    if not shutil.which("thunar"):
        pytest.skip("thunar is not installed")
    await client.execute("mkdir -p drop/folder; echo 1 > drop/note.txt", shell=True)
    await client.launch(["thunar", "drop"])
    await client.wait(window_name="drop", min_colors=16, stable_s=0.5, timeout_s=120)
    (window,) = await client.windows()
    # The icons of the window that the task's file manager opens: the folder first, then the file.
    icons = [Point(x, window["y"] + 95) for x in (window["x"] + 211, window["x"] + 284)]
    assert await client.act(Drag(start=icons[1], end=icons[0])) is None
    while await client.read_file("~/drop/folder/note.txt") is None:
        await asyncio.sleep(0.05)
    await client.execute("pkill -i thunar; rm -r drop", shell=True)
    while await client.windows():
        await asyncio.sleep(0.02)


async def test_keys_are_held_and_let_go(client: GuestClient) -> None:
    caps = Press(key="capslock")
    held = [KeyDown(key="shift"), Press(key="a"), KeyUp(key="shift"), Press(key="a")]
    got = await type_into_terminal(client, caps, TypeText(text="Ab1é日!"), caps, *held)
    assert got == "Ab1é日!Aa\n"


async def test_the_pointer_goes_clicks_drags_and_scrolls(client: GuestClient) -> None:
    """A terminal that reports the mouse (xterm's modes 1002 and 1006) says what it was given."""
    report = "stty raw -echo; printf '\\033[?1002h\\033[?1006h'; touch up; cat > typed"
    at = Point(100.0, 60.0)
    drag = Drag(start=at, end=Point(300.0, 60.0))
    actions: list[Action] = [
        Hover(point=at),
        Click(point=at, count=2),
        Click(point=at, button="right"),
        drag,
        Scroll(direction="down", point=at),
    ]
    await run_in_terminal(client, f"sh -c {shlex.quote(report)}")
    while await client.read_file("~/up") is None:
        await asyncio.sleep(0.02)
    await client.screenshot(stable_s=0.3, timeout_s=30)
    for action in actions:
        assert await client.act(action) is None
    assert await client.cursor_position() == (100, 60)
    await client.screenshot(stable_s=0.3, timeout_s=30)
    await client.execute("pkill cat", shell=True)
    events = [part.split(";") for part in (await typed(client)).split("\x1b[<")[1:]]
    codes = [int(event[0]) for event in events]
    assert codes[:6] == [0, 0, 0, 0, 2, 2]  # a press and a release each, the second click too
    assert codes[6] == 0
    assert set(codes[7:-6]) <= {32}  # moves with the button held, as far as xterm tells them apart
    assert codes[-6:] == [0] + [65] * 5
    ends = [event for event in events if event[0] == "0"][-1]
    assert int(ends[1]) > int(events[0][1]) + 10  # let go to the right of where it began


@pytest.mark.parametrize(
    ("action", "why"),
    [
        (Click(point=Point(640, 10)), "outside the 640 x 400 screen"),
        (Drag(start=Point(1, 1), end=Point(1, 400)), "outside"),
        (Press(key="hyper"), "no key 'hyper'"),
        (Hotkey(keys=()), "at least one key"),
        (TypeText(text="a\x07b"), "U\\+0007 cannot be typed"),
    ],
)
async def test_what_cannot_be_done_is_refused_untouched(
    client: GuestClient, action: Action, why: str
) -> None:
    await client.act(Hover(point=Point(5, 5)))
    refusal = await client.act(action)
    assert refusal is not None
    assert re.search(why, refusal)
    assert await client.cursor_position() == (5, 5)


async def test_a_screenshot_waits_for_what_an_action_does(client: GuestClient) -> None:
    await run_in_terminal(client, "sh -c 'read x; sleep 0.4; echo DONE; read y'")
    shown = await client.screenshot(stable_s=0.2, timeout_s=30)
    assert await client.act(Press(key="enter")) is None
    first = await client.screenshot(stable_s=1.0, react_s=10, timeout_s=60)
    assert first.settled
    assert first.png != shown.png
    assert await client.act(Press(key="enter")) is None
    assert await typed(client) == ""


async def test_a_pointer_that_moved_is_no_reaction(client: GuestClient) -> None:
    """Else each click would count as answered before the application answers."""
    await client.act(Hover(point=Point(400, 300)))
    await client.act(Hover(point=Point(500, 200)))
    shot = await client.screenshot(stable_s=0.05, react_s=0.7, timeout_s=20)
    assert shot.settle_ms >= 700


async def test_waiting_changes_nothing(client: GuestClient) -> None:
    await client.act(Hover(point=Point(7, 9)))
    assert await client.act(Wait()) is None
    assert await client.cursor_position() == (7, 9)


async def test_a_window_that_does_not_come_is_an_error(client: GuestClient) -> None:
    with pytest.raises(EnvError, match="there is no window 'nothing'"):
        await client.wait(window_name="nothing", timeout_s=0.2)


# --- only by published routes ---------------------------------------------------------------------


async def test_a_guest_without_python_xlib_is_an_error_that_says_so(
    double: PublishedDouble,
) -> None:
    pythons, double.pythons = double.pythons, {"python": "/usr/bin/python3"}
    client = GuestClient(double.address)
    try:
        if not (await client.execute(["python", "-c", "import Xlib"])).returncode:
            pytest.skip("the system's Python has python-xlib")
        with pytest.raises(EnvError, match=r"(?s)No such file.*No module named 'Xlib'"):
            await client.act(Press(key="a"))
    finally:
        double.pythons = pythons
        await client.close()


def works(effect: str) -> dict[str, Any]:
    """A set-up step that starts a program, which has its effect after half a second of work."""
    work = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"
    return {"type": "launch", "parameters": {"command": f"{work}; {effect}", "shell": True}}


async def test_an_evaluation_waits_until_programs_have_done_their_work(
    client: GuestClient, tmp_path: Path
) -> None:
    text = {
        "instruction": "Nothing.",
        "config": [works("echo done > a.txt")],
        "evaluator": {
            "postconfig": [works("cp a.txt b.txt")],
            "func": "exact_match",
            "result": {"type": "vm_file", "path": "b.txt"},
            "expected": {"type": "rule", "rules": {"expected": "done\n"}},
        },
    }
    (tmp_path / "work.json").write_text(json.dumps(text))
    text["config"] = [
        {"type": "launch", "parameters": {"command": "yes > /dev/null", "shell": True}}
    ]
    (tmp_path / "never.json").write_text(json.dumps(text))
    tasks = TaskFolder(tmp_path, name="own")
    pace = Pace(react_s=0, settle_s=0.01, rest_limit_s=120)
    env = DesktopEnv(client, tasks, pace=pace)
    await env.reset(Task(task_id="own/work", seed=1))
    assert (await env.evaluate()).reward == 1.0
    await client.execute("rm a.txt b.txt", shell=True)
    env = DesktopEnv(client, tasks, pace=replace(pace, rest_limit_s=0.2))
    await env.reset(Task(task_id="own/never", seed=1))  # it is evaluated all the same
    assert (await env.evaluate()).reward == 0.0
    await client.execute(["pkill", "yes"])


@pytest.mark.parametrize("way", ["solution", "near_miss"])
async def test_an_episode_on_a_guest_with_published_routes(
    tmp_path_factory: pytest.TempPathFactory, way: str
) -> None:
    folder = tmp_path_factory.mktemp("e")
    provider = XvfbProvider(folder / "d", width=800, height=500)
    source = PublishedSource(DesktopPool(provider, max_taken=1, spares=0), folder)
    tasks = mini_tasks()
    pace = Pace(react_s=3.0, settle_s=0.15, settle_limit_s=30.0, wait_s=0.1)
    cluster = DesktopCluster(source, tasks, num_envs=1, pace=pace)
    task = Task(task_id="desktop-mini/rename-file", seed=11)
    await cluster.start()
    async with cluster.lease(task) as env:
        await env.reset(task)
        for action in getattr(tasks.instantiate(task), way):
            assert (await env.step(action)).action_error is None
        assert (await env.evaluate()).reward == (1.0 if way == "solution" else 0.0)
    await cluster.close()
    assert {"/action", "/wait", "/windows"}.isdisjoint(source.asked)
