"""The guest API over a screen without a display: routes, JSON and errors."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from PIL import Image

from dart_gui.env.desktop import guest_scripts
from dart_gui.env.desktop.address import Address
from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.fakes import FakeScreen
from dart_gui.env.desktop.screen import Window
from dart_gui.env.providers.fake import FakeProvider
from dart_gui.errors import EnvError
from dart_gui.types import Click, Hotkey, Point, Press, TypeText

WINDOW = Window(
    window_id=7,
    title="Notes",
    wm_class=("notes", "Notes"),
    x=0,
    y=0,
    width=300,
    height=100,
    is_active=False,
)


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[FakeProvider]:
    made = FakeProvider(tmp_path / "desktops")
    await made.start()
    await made.create("one")
    yield made
    await made.destroy("one")


@pytest.fixture
async def client(provider: FakeProvider) -> AsyncIterator[GuestClient]:
    (desktop,) = await provider.find()
    made = GuestClient(desktop.address)
    yield made
    await made.close()


@pytest.fixture
async def raw(provider: FakeProvider) -> AsyncIterator[aiohttp.ClientSession]:
    (desktop,) = await provider.find()
    connector = aiohttp.UnixConnector(str(desktop.address.socket))
    async with aiohttp.ClientSession("http://desktop", connector=connector) as session:
        yield session


@pytest.fixture
def screen(provider: FakeProvider) -> FakeScreen:
    return provider.screen("one")


async def test_the_screenshot_shows_the_pointer_and_its_cost(client: GuestClient) -> None:
    await client.act(Click(point=Point(20, 30)))
    shot = await client.screenshot()
    image = Image.open(io.BytesIO(shot.png))
    assert image.format == "PNG"
    assert image.size == (320, 200)
    assert image.getpixel((20, 30)) == (255, 255, 255)
    assert shot.grab_ms > 0
    assert shot.encode_ms > 0
    plain = Image.open(io.BytesIO((await client.screenshot(cursor=False)).png))
    assert plain.getpixel((20, 30)) == plain.getpixel((0, 0))


async def test_a_screenshot_can_wait_for_a_still_screen(client: GuestClient) -> None:
    shot = await client.screenshot(stable_s=0.05, timeout_s=30)
    assert shot.settled
    assert shot.settle_ms >= 50


async def test_text_arrives_as_text(client: GuestClient, screen: FakeScreen) -> None:
    text = 'a < b "c" \\n \'; import os # $(rm) 日本 😀\n'
    assert await client.act(TypeText(text=text)) is None
    assert screen.typed == text
    assert await client.act(Hotkey(keys=("ctrl", "c"))) is None
    assert screen.actions == [TypeText(text=text), Hotkey(keys=("ctrl", "c"))]


async def test_a_refused_action_changes_nothing(client: GuestClient, screen: FakeScreen) -> None:
    assert "outside the 320 x 200" in str(await client.act(Click(point=Point(320, 0))))
    assert "no key" in str(await client.act(Press(key="nokey")))
    assert screen.actions == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[1]",
        b"{",
        b'{"kind": "explode"}',
        b'{"kind": "click"}',
        b'{"kind": "finished"}',
        b'{"kind": "click", "point": {"x": 1, "y": 1}, "count": 77}',
    ],
)
async def test_what_is_no_action_is_a_bad_request(
    raw: aiohttp.ClientSession, body: bytes, screen: FakeScreen
) -> None:
    async with raw.post("/action", data=body) as response:
        assert response.status == 400
        assert (await response.json())["status"] == "error"
    assert screen.actions == []


async def post(raw: aiohttp.ClientSession, route: str, body: Any) -> tuple[int, Any]:
    async with raw.post(route, json=body) as response:
        is_json = response.content_type == "application/json"
        return response.status, await (response.json() if is_json else response.text())


@pytest.mark.parametrize("route", ["/execute", "/setup/execute"])
async def test_execute_answers_as_osworld_has_it(raw: aiohttp.ClientSession, route: str) -> None:
    status, answer = await post(raw, route, {"command": ["sh", "-c", "echo hi; exit 4"]})
    assert status == 200
    expected = {"status": "success", "output": "hi\n", "error": "", "returncode": 4}
    assert expected.items() <= answer.items()


async def test_execute_says_what_went_wrong(raw: aiohttp.ClientSession) -> None:
    status, answer = await post(raw, "/execute", {"command": "no-such-program-here"})
    assert (status, answer["status"]) == (500, "error")
    assert "no-such-program-here" in answer["message"]
    status, answer = await post(raw, "/execute", {"command": ["sleep", "600"], "timeout": 0.3})
    assert status == 500
    assert "timed out after 0.3 seconds" in answer["message"]
    for command in (None, [], "", [1], {"a": 1}):
        assert (await post(raw, "/execute", {"command": command}))[0] == 400


async def test_commands_start_in_the_home(raw: aiohttp.ClientSession, tmp_path: Path) -> None:
    _, answer = await post(raw, "/execute", {"command": "pwd", "shell": True})
    assert answer["output"].strip() == str(tmp_path / "desktops" / "one" / "home")


async def test_execute_with_verification(raw: aiohttp.ClientSession) -> None:
    """Its answers are those of OSWorld's ``desktop_env/server/main.py``."""
    made = {"status": "success", "output": "", "error": "", "returncode": 0}
    body: dict[str, Any] = {"command": "touch made; sleep 0", "shell": True}
    status, answer = await post(raw, "/execute_with_verification", body)
    assert (status, "verification" in answer) == (200, False)
    assert made.items() <= answer.items()
    body |= {
        "verification": {"command_success": "test -e made"},
        "max_wait_time": 5,
        "check_interval": 0.05,
    }
    status, answer = await post(raw, "/execute_with_verification", body)
    assert status == 200
    assert (made | {"verification": "passed"}).items() <= answer.items()
    assert 0 <= answer["wait_time"] < 5
    body |= {"command": "echo hi; exit 3", "verification": {"window_exists": "Nowhere"}}
    status, answer = await post(
        raw, "/setup/execute_with_verification", body | {"max_wait_time": 0.1}
    )
    assert status == 500
    failed = {"status": "verification_failed", "verification": "failed", "wait_time": 0.1}
    assert (failed | {"output": "hi\n", "error": "", "returncode": 3}).items() <= answer.items()
    assert "no window 'Nowhere'" in answer["message"]
    body |= {"command": ["no-such-program-here"], "shell": False}
    status, answer = await post(raw, "/execute_with_verification", body)
    assert (status, answer["status"]) == (500, "error")


def python(output: str, error: str, code: int, message: str) -> tuple[int, dict[str, Any]]:
    return 200, {
        "status": "error" if code else "success",
        "message": message,
        "need_more": False,
        "output": output,
        "error": error,
        "return_code": code,
    }


NO_CODE = (400, {"status": "error", "message": "Code not supplied!", "error": "Code not supplied!"})
EXITED = "Process exited with code 5"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"code": "print(1 + 1)"}, python("2\n", "", 0, "2\n")),
        (
            {"code": "import sys; print('a'); sys.stderr.write('b\\n')"},
            python("a\n", "b\n", 0, "a\n\nb\n"),
        ),
        ({"code": "raise SystemExit(5)"}, python("", EXITED, 5, EXITED)),
        (
            {"code": "print('o'); raise SystemExit(5)"},
            python("o\n", EXITED, 5, f"o\n\n{EXITED}"),
        ),
        ({"code": ""}, NO_CODE),
        ({}, NO_CODE),
    ],
)
async def test_python_answers_as_osworld_has_it(
    raw: aiohttp.ClientSession, body: dict[str, Any], expected: tuple[int, dict[str, Any]]
) -> None:
    assert await post(raw, "/run_python", body) == expected


async def test_what_python_says_of_an_error_shows_the_line(raw: aiohttp.ClientSession) -> None:
    _, answer = await post(raw, "/run_python", {"code": "print('o')\n1/0"})
    assert answer["message"] == f"o\n\n{answer['error']}"
    assert "line 2, in <module>\n    1/0\n" in answer["error"]


async def test_python_that_takes_too_long(
    raw: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_scripts, "PYTHON_S", 0.2)
    assert await post(raw, "/run_python", {"code": "import time; time.sleep(600)"}) == (
        500,
        {
            "status": "error",
            "message": "Execution timeout: Code took too long to execute",
            "error": "TimeoutExpired",
            "need_more": False,
            "output": None,
        },
    )


def bash(output: str, code: int = 0, *, status: int = 200) -> tuple[int, dict[str, Any]]:
    told = "error" if code else "success"
    return status, {"status": told, "output": output, "error": "", "returncode": code}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"script": "x=3\necho $((x + 1)); echo err >&2; echo out"}, bash("4\nerr\nout\n")),
        ({"script": "pwd; exit 3", "working_dir": "/usr"}, bash("/usr\n", 3)),
        (
            {"script": "pwd", "working_dir": "/no/such"},
            bash("Working directory does not exist: /no/such", -1, status=400),
        ),
        (
            {"script": "sleep 600", "timeout": 0.25},
            bash("Script execution timed out after 0.25 seconds", -1, status=500),
        ),
        ({"script": ""}, bash("Script not supplied!", -1, status=400)),
        ({"script": None, "working_dir": None}, bash("Script not supplied!", -1, status=400)),
    ],
)
async def test_bash_answers_as_osworld_has_it(
    raw: aiohttp.ClientSession, body: dict[str, Any], expected: tuple[int, dict[str, Any]]
) -> None:
    assert await post(raw, "/run_bash_script", body) == expected


async def test_where_scripts_of_bash_run(
    raw: aiohttp.ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    body = {"script": "pwd", "working_dir": "~"}
    assert await post(raw, "/run_bash_script", body) == bash(f"{tmp_path}\n")
    home = tmp_path / "desktops" / "one" / "home"
    assert await post(raw, "/run_bash_script", {"script": "pwd"}) == bash(f"{home}\n")


async def test_files_come_back_as_they_went(client: GuestClient) -> None:
    content = bytes(range(256)) * 5000
    await client.write_file("deep/er/file.bin", content)
    assert await client.read_file("deep/er/file.bin") == content
    assert await client.read_file("deep/er/none") is None
    await client.write_file("empty", b"")
    assert await client.read_file("empty") == b""


async def test_a_directory_is_listed_as_a_tree(
    raw: aiohttp.ClientSession, client: GuestClient
) -> None:
    await client.write_file("a/b/c.txt", b"1")
    _, answer = await post(raw, "/list_directory", {"path": "a"})
    leaf = {"type": "file", "name": "c.txt"}
    inner = {"type": "directory", "name": "b", "children": [leaf]}
    assert answer == {"directory_tree": {"type": "directory", "name": "a", "children": [inner]}}
    assert (await post(raw, "/list_directory", {"path": "nowhere"}))[0] == 400


async def test_wallpaper(raw: aiohttp.ClientSession, client: GuestClient) -> None:
    assert (await post(raw, "/wallpaper", {}))[0] == 404
    await client.write_file("w.png", b"picture")
    assert (await post(raw, "/setup/change_wallpaper", {"path": "w.png"}))[0] == 200
    async with raw.post("/wallpaper") as response:
        assert await response.read() == b"picture"


async def test_a_download_that_fails_says_so(raw: aiohttp.ClientSession) -> None:
    body = {"url": "http://127.0.0.1:9/nothing", "path": "x"}
    status, answer = await post(raw, "/setup/download_file", body)
    assert status == 500
    assert "cannot download" in answer["message"]


async def test_windows_are_activated_and_closed(
    raw: aiohttp.ClientSession, screen: FakeScreen
) -> None:
    assert (await post(raw, "/setup/activate_window", {"window_name": "note"}))[0] == 404
    screen.open_windows = [WINDOW]
    form = aiohttp.FormData({"app_class_name": "notes"})
    async with raw.post("/window_size", data=form) as response:
        assert await response.json() == {"width": 300, "height": 100}
    assert (await post(raw, "/setup/activate_window", {"window_name": "note"}))[0] == 200
    assert screen.open_windows[0].is_active
    assert (await post(raw, "/setup/close_window", {"window_name": "Notes", "strict": True}))[
        0
    ] == 200
    assert screen.open_windows == []
    assert (await post(raw, "/setup/close_window", {}))[0] == 400


async def test_waiting_has_an_end(client: GuestClient, screen: FakeScreen) -> None:
    with pytest.raises(EnvError, match=r"408.*there is no window 'Notes'"):
        await client.wait(window_name="Notes", timeout_s=0.2)
    screen.open_windows = [WINDOW]
    screen.activate(7)
    assert await client.wait(window_name="Notes", min_colors=1, timeout_s=30) >= 0.1


async def test_small_questions(raw: aiohttp.ClientSession, client: GuestClient) -> None:
    assert (await post(raw, "/screen_size", {}))[1] == {"width": 320, "height": 200}
    async with raw.get("/platform") as response:
        assert await response.text() == "Linux"
    async with raw.get("/terminal") as response:
        assert await response.json() == {"output": None, "status": "success"}
    await client.act(Click(point=Point(4.7, 5)))
    assert await client.cursor_position() == (4, 5)
    assert (await post(raw, "/desktop_path", {}))[1]["desktop_path"].endswith("/home/Desktop")
    assert await client.health() == {"status": "ready", "width": 320, "height": 200}


async def test_an_unknown_route_is_404_in_json(raw: aiohttp.ClientSession) -> None:
    status, answer = await post(raw, "/nowhere", {})
    assert (status, answer["status"]) == (404, "error")


async def test_a_published_guest_is_ready_within_the_limit_or_not_at_all(tmp_path: Path) -> None:
    """However often its picture is asked for again."""
    released = asyncio.Event()

    async def hang(_: web.Request) -> web.Response:
        await released.wait()
        return web.Response(status=500)

    app = web.Application()
    app.router.add_get("/screenshot", hang)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "guest.sock")).start()
    client = GuestClient(Address(socket=tmp_path / "guest.sock"))
    try:
        async with asyncio.timeout(20):
            with pytest.raises(EnvError, match=r"no picture within 0\.3 s"):
                await client.wait_ready(timeout_s=0.3)
    finally:
        released.set()
        await client.close()
        await runner.cleanup()
