"""OSWorld's own getters and metrics, from the package ``desktop-env``: `make test-osworld`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from dart_gui.env.desktop.address import Address
from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.fakes import FakeScreen
from dart_gui.env.desktop.guest import Guest, new_app
from dart_gui.env.desktop.ports import MARK
from dart_gui.env.desktop.screen import Window
from dart_gui.env.osworld.downloads import Downloads
from dart_gui.env.osworld.evaluate import EvaluatorSettings, evaluate
from dart_gui.env.osworld.setup import Stage, set_up
from dart_gui.env.osworld.tasks import parse
from dart_gui.errors import EnvError
from dart_gui.types import Hotkey, Press, TypeText
from tests.osworld_cases import screens
from tests.osworld_cases.subjects import ALL, SUBJECTS, cases_of, evaluator

pytestmark = [pytest.mark.osworld, pytest.mark.slow]

Chosen = tuple[str, int]  # a case of a subject
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def python() -> Path:
    made = ROOT / ".venv-osworld" / "bin" / "python"
    path = Path(os.environ.get("DART_OSWORLD") or made).absolute()
    if not path.is_file() or not (path.parents[1] / "dart-gui-osworld").is_file():
        pytest.skip("OSWorld's metrics are not installed: `make test-osworld` does so")
    return path


@pytest.fixture(scope="module")
def made(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of all cases."""
    folder = tmp_path_factory.mktemp("made")
    command = [python, "-s", "-m", "tests.osworld_cases", folder]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


class Desk:
    """A desktop without a display in this process, and evaluations of it."""

    def __init__(self, folder: Path, python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        monkeypatch.setenv("HOME", str(self.home))  # which its programs have from this process
        for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CURRENT_DESKTOP"):
            monkeypatch.delenv(name, raising=False)
        self.screen = FakeScreen()
        self.answers: dict[str, str] = {}  # of stand-ins, by route
        self.downloads = Downloads(folder / "cache", offline=True)
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self._socket = folder / "guest.sock"
        self._settings = EvaluatorSettings(python=python, timeout_s=240, memory_mb=8192)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[GuestClient]:
        guest = Guest(self.screen, home=self.home)
        app = new_app(guest)
        app.middlewares.append(self._answer)  # type: ignore[arg-type]
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.UnixSite(runner, str(self._socket)).start()
        client = GuestClient(Address(socket=self._socket))
        try:
            yield client
        finally:
            await client.close()
            await runner.cleanup()
            guest.close()

    @web.middleware
    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        words = self.answers.get(request.path)
        if words is None:
            return await handler(request)
        if request.path.startswith("/port/"):
            return web.Response(text=words, content_type="text/xml", headers={MARK: "1"})
        return web.json_response({"AT": words, "output": words})

    def keep(self, url: str, content: bytes) -> None:
        """As a mirror leaves it."""
        partial = self.downloads._partial(url)
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        self.downloads._keep(url)

    async def reward(self, published: dict[str, Any]) -> float:
        task = parse({"instruction": "x", "evaluator": published}, task_id="osworld/os/a")
        async with self.opened() as client:
            return await evaluate(
                client,
                task,
                scratch=self.scratch,
                downloads=self.downloads,
                settings=self._settings,
            )


@pytest.fixture
def desk(tmp_path: Path, python: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    desk = Desk(tmp_path, python, monkeypatch)
    for gold in (made / "gold").glob("*/*"):
        desk.keep(f"http://gold/{gold.parent.name}/{gold.name}", gold.read_bytes())
    return desk


def furnish(desk: Desk, made: Path, name: str, side: str) -> None:
    shutil.rmtree(desk.home)
    shutil.copytree(made / name / side, desk.home)
    if name == "screens":
        number = ("right", "wrong").index(side)
        desk.answers = {route: words[number] for route, words in screens.ANSWERS.items()}
        desk.screen.open_windows = [window("Film - VLC", screens.WINDOWS[number])]


def window(title: str, size: dict[str, int]) -> Window:
    return Window(
        window_id=1,
        title=title,
        wm_class=("vlc", "vlc"),
        x=0,
        y=0,
        is_active=True,
        **size,
    )


async def reward_or_error(desk: Desk, published: dict[str, Any]) -> float | str:
    try:
        return await desk.reward(published)
    except EnvError as error:
        return str(error)


@pytest.mark.parametrize("name", SUBJECTS)
async def test_right_results_earn_1_and_near_misses_less(desk: Desk, made: Path, name: str) -> None:
    """Together 1 is that each is 1, and the best of the near misses is an upper bound of each."""
    furnish(desk, made, name, "right")
    await expect(desk, "right", cases_of(name), 1.0)
    furnish(desk, made, name, "wrong")
    cases = SUBJECTS[name].cases
    for bound in {case.below for case in cases}:
        chosen = [(name, i) for i, case in enumerate(cases) if case.below == bound]
        await expect(desk, "wrong", chosen, bound)


async def expect(desk: Desk, side: str, chosen: Sequence[Chosen], bound: float) -> None:
    found = await reward_or_error(desk, evaluator(side, chosen))
    while len(chosen) > 1 and not _good(found, side, bound):  # halves, to say which it was
        half = chosen[: len(chosen) // 2]
        said = await reward_or_error(desk, evaluator(side, half))
        chosen = chosen[len(half) :] if _good(said, side, bound) else half
        found = await reward_or_error(desk, evaluator(side, chosen)) if chosen != half else said
    metrics = [SUBJECTS[name].cases[i].metric for name, i in chosen]
    assert _good(found, side, bound), f"{side}: {list(zip(chosen, metrics, strict=True))}: {found}"


def _good(found: float | str, side: str, bound: float) -> bool:
    return isinstance(found, float) and (found == 1.0 if side == "right" else found <= bound)


async def test_what_the_agent_did_not_make_is_0(desk: Desk) -> None:
    """Whatever the getters and metrics do about it: many fail."""
    asks = [
        (name, i)
        for (name, i), result in zip(ALL, evaluator("wrong", ALL)["result"], strict=True)
        if result["type"] not in ("rule", "vm_command_line", "vm_command_error")
    ]
    assert len(asks) > 100
    desk.answers = {"/accessibility": "<desktop-frame/>"}  # a desktop without one could not tell
    await expect(desk, "wrong", asks, 0.0)


async def test_keys_that_a_getter_presses_are_typed_actions(desk: Desk, made: Path) -> None:
    furnish(desk, made, "settings", "right")
    pressed = [
        i for i, case in enumerate(SUBJECTS["settings"].cases) if case.metric == "compare_config"
    ]
    assert await desk.reward(evaluator("right", [("settings", i) for i in pressed])) == 1.0
    palette = Hotkey(keys=("ctrl", "shift", "p"))
    assert desk.screen.actions == [palette, TypeText(text="OpenProject"), Press(key="enter")]


@pytest.mark.parametrize(("found", "reward"), [("one\n", 1.0), ("two\n", 0.0)])
async def test_a_getter_reads_what_a_step_left(desk: Desk, found: str, reward: float) -> None:
    (desk.home / "a.txt").write_text("one\n")
    (desk.home / "b.txt").write_text(found)
    compare = {"command": "diff a.txt b.txt", "shell": True, "stdout": "diff.out"}
    published = {
        "postconfig": [{"type": "execute", "parameters": compare}],
        "func": "check_list",
        "result": {"type": "cache_file", "path": "diff.out"},
        "expected": {"type": "rule", "rules": {"unexpect": [".+"]}},
    }
    task = parse({"instruction": "x", "evaluator": published}, task_id="osworld/os/a")
    async with desk.opened() as client:
        stage = Stage(
            client=client,
            scratch=desk.scratch,
            downloads=desk.downloads,
            folder=desk.home,
            password="",
        )
        await set_up(stage, task.evaluator.postconfig)
    assert await desk.reward(published) == reward


def test_the_docs_have_each_metric_and_getter_of_the_package(python: Path) -> None:
    list_them = (
        "import inspect, json, sys, types; sys.modules['easyocr'] = types.ModuleType('easyocr');"
        "import desktop_env.evaluators.metrics as m, desktop_env.evaluators.getters as g;"
        "print(json.dumps([[n for n, f in vars(p).items() if inspect.isfunction(f)] for p in (m, g)]))"
    )
    done = subprocess.run(
        [python, "-s", "-c", list_them], capture_output=True, text=True, timeout=300, check=True
    )
    metrics, getters = json.loads(done.stdout)
    assert listed("Metrics") == set(metrics)
    assert listed("Getters") == {name.removeprefix("get_") for name in getters}


def listed(title: str) -> set[str]:
    docs = (ROOT / "docs" / "osworld.md").read_text(encoding="utf-8")
    section = docs.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return set(re.findall(r"`(\w+)`", " ".join(row.split("|", 2)[2] for row in rows)))


async def test_a_metric_that_crashes_is_not_a_zero(desk: Desk) -> None:
    (desk.home / "a.pptx").write_bytes(b"no deck")
    result = {"type": "vm_file", "path": "a.pptx", "dest": "a.pptx"}
    published = {"func": "compare_pptx_files", "result": result, "expected": result}
    with pytest.raises(EnvError, match="evaluation of osworld/os/a failed"):
        await desk.reward(published)
