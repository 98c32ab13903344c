"""``dart-gui eval --agent openai`` against a stand-in server that looks at the screenshots: real pages,
real desktops, the command line, and a folder that can be gone on with."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dart_gui.agent import computer_use, grammar
from dart_gui.agent.geometry import Geometry, ImageLimits
from dart_gui.cli import main
from dart_gui.env.desktop.mini import mini_tasks
from dart_gui.env.suites import eval_seed
from dart_gui.types import Action, Click, Finished, Point, Task

ROOT = Path(__file__).resolve().parents[2]
LIMITS = ImageLimits(56 * 56, 16384 * 28 * 28)
KEY = "sk-never-written"
ENV = {
    **os.environ,
    "PYTHONPATH": str(ROOT / "src"),
    "COLUMNS": "120",
    "OPENAI_API_KEY": KEY,
}
WAIT_S = 240.0  # on a machine that does much else


class StandIn(ThreadingHTTPServer):
    """Models: ``seeing`` clicks on what stands out of a white page, ``blind`` in the corner of it;
    ``solver`` knows the solutions of desktop-mini and tells the task by its instruction."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.num_asked = 0
        self.limit = 10**9  # requests that are answered; later ones wait until it is raised
        self.solutions: dict[str, tuple[Action, ...]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def answer(self, body: dict[str, Any]) -> str:
        images = [part for part in parts(body) if part["type"] == "image_url"]
        url = images[-1]["image_url"]["url"]
        png = base64.b64decode(url.removeprefix("data:image/png;base64,"))
        with Image.open(io.BytesIO(png)) as image:
            geometry = Geometry(image.width, image.height, LIMITS)
            action = self.choose(body, image)
        if "computer_use" in str(body["messages"]):
            grid = computer_use.Coordinates.GRID
            return computer_use.render("Next.", [action], geometry, grid)
        return grammar.render("Next.", [action], geometry)

    def choose(self, body: dict[str, Any], image: Image.Image) -> Action:
        if body["model"] == "seeing":
            return Click(point=middle_of_button(image))
        if body["model"] == "blind":
            return Click(point=Point(1.0, image.height - 2.0))
        text = " ".join(part["text"] for part in parts(body) if part["type"] == "text")
        num_done = sum(message["role"] == "assistant" for message in body["messages"])
        solution = next((each for key, each in self.solutions.items() if key in text), ())
        return solution[num_done] if num_done < len(solution) else Finished()


def parts(body: dict[str, Any]) -> list[dict[str, Any]]:
    contents = [message["content"] for message in body["messages"] if message["role"] == "user"]
    return [part for content in contents for part in content]


def middle_of_button(image: Image.Image) -> Point:
    """Below the yellow bar of a MiniWoB page, click-test has its one button on white."""
    page = image.convert("L").crop((2, 52, image.width - 2, image.height - 2))
    box = page.point(lambda level: 255 if level < 250 else 0).getbbox()
    left, top, right, bottom = box or (0, 0, 0, 0)
    return Point((left + right) / 2 + 2, (top + bottom) / 2 + 52)


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self.send(200, {"data": [{"id": name} for name in ("seeing", "blind", "solver")]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            self.send(401, {"error": {"message": "Incorrect API key provided"}})
        elif body["model"] not in ("seeing", "blind", "solver"):
            self.send(404, {"error": {"message": f"no model {body['model']}"}})
        else:
            self.server.num_asked += 1
            number = self.server.num_asked
            while number > self.server.limit:
                time.sleep(0.05)
            message = {"role": "assistant", "content": self.server.answer(body)}
            self.send(200, {"choices": [{"message": message, "finish_reason": "stop"}]})

    def send(self, status: int, tree: dict[str, Any]) -> None:
        data = json.dumps(tree).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:  # the client was stopped
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[StandIn]:
    made = StandIn()
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield made
    made.limit = 10**9
    made.shutdown()
    thread.join()
    made.server_close()


def command(server: StandIn, model: str, out: Path, *more: str) -> list[str]:
    arguments = ["--agent", "openai", "--base-url", server.url, "--model", model, "--greedy"]
    return [sys.executable, "-m", "dart_gui", "eval", *arguments, "--out", str(out), *more]


def evaluate(server: StandIn, model: str, out: Path, *more: str) -> str:
    done = subprocess.run(
        command(server, model, out, *more),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env=ENV,
        cwd=out.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "summary.json").read_text())


PAGES = ("--suite", "miniwob", "--tasks", "click-test", "--max-steps", "2", "--parallel", "2")


@pytest.mark.browser
@pytest.mark.slow
def test_a_model_that_sees_and_one_that_does_not(server: StandIn, tmp_path: Path) -> None:
    out = tmp_path / "seeing"
    output = evaluate(server, "seeing", out, *PAGES, "--episodes", "2", "--repeats", "2")
    assert "0 of 4 episodes are finished" in output
    assert re.search(r"click-test +4 +100\.0 \(51\.0-100\.0\) +100\.0 +100\.0", output)
    overall = summary(out)["overall"]
    assert overall["pass_at"] == {"1": 1.0, "2": 1.0}
    assert overall["mean_steps"] == 1.0
    root = out / "ui-tars" / "screenshot" / "seeing" / "miniwob"
    names = ("click-test", "click-test.i2", "click-test.r2", "click-test.i2.r2")
    assert sorted(path.name for path in root.iterdir()) == sorted(names)
    assert all((root / name / "result.txt").read_text() == "1.0\n" for name in names)
    assert all(len(list((root / name).glob("step_*.png"))) == 2 for name in names)
    assert "pass@2" in (out / "summary.md").read_text()

    num_asked = server.num_asked
    (root / "click-test.r2" / "result.txt").unlink()
    output = evaluate(server, "seeing", out, *PAGES, "--episodes", "2", "--repeats", "2")
    assert "3 of 4 episodes are finished" in output
    assert server.num_asked == num_asked + 2, "one for the check, one for the episode"
    assert summary(out)["overall"]["success"]["num_successes"] == 4
    written = [path for path in out.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in path.read_bytes() for path in written)
    assert KEY not in output

    blind = tmp_path / "blind"
    evaluate(server, "blind", blind, *PAGES, "--grammar", "computer_use")
    assert summary(blind)["overall"]["success"]["rate"] == 0.0
    place = blind / "qwen3-computer-use" / "screenshot" / "blind" / "miniwob" / "click-test"
    rows = [json.loads(line) for line in (place / "traj.jsonl").read_text().splitlines()]
    assert [row["step_num"] for row in rows] == [1, 2]
    assert "tool_call" in rows[0]["response"]
    assert (place / "result.txt").read_text() == "0.0\n"


@pytest.mark.browser
def test_ctrl_c_leaves_what_is_finished_and_is_gone_on_with(
    server: StandIn, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = [*PAGES, "--episodes", "6"]
    server.limit = 4  # the check and three episodes; two more hang
    process = subprocess.Popen(
        command(server, "seeing", out, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
        start_new_session=True,
    )
    deadline = time.monotonic() + WAIT_S
    while len(list(out.rglob("result.txt"))) < 3 or server.num_asked < 6:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the browser too
    output, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130, output + errors
    assert errors == ""
    assert "stopped; 3 episodes are still to be played" in output
    tree = summary(out)
    assert tree["overall"]["num_missing"] == 3
    assert tree["overall"]["success"]["num_episodes"] == 3
    assert tree["overall"]["num_failed"] == 0
    assert not (out / ".unfinished").exists()
    places = [path.parent for path in out.rglob("traj.jsonl")]
    assert all((place / "result.txt").exists() for place in places)

    server.limit = 10**9
    output = evaluate(server, "seeing", out, *arguments)
    assert "3 of 6 episodes are finished" in output
    assert summary(out)["overall"]["success"]["num_successes"] == 6


@pytest.mark.desktop
@pytest.mark.slow
@pytest.mark.parametrize("name", ["uitars", "computer_use"])
def test_scripted_solutions_on_desktops(server: StandIn, tmp_path: Path, name: str) -> None:
    names = ["rename-file", "editor-new-note"]
    for task_id in names:
        task = Task(task_id=f"desktop-mini/{task_id}", seed=eval_seed(0))
        instance = mini_tasks().instantiate(task)
        server.solutions[" ".join(instance.instruction.split())] = instance.solution
    out = tmp_path / "out"
    evaluate(
        *(server, "solver", out, "--suite", "desktop-mini", "--tasks", ",".join(names)),
        *("--grammar", name, "--parallel", "1", "--env.react_ms=6000", "--env.desktop_spares=0"),
        *(
            "--env.settle_ms=400",
            "--env.settle_limit_ms=10000",
        ),
    )
    tree = summary(out)
    assert tree["overall"]["success"]["num_successes"] == 2, (out / "summary.md").read_text()
    assert sorted(tree["by_domain"]) == ["mousepad", "terminal"]
    (root,) = (out / ("ui-tars" if name == "uitars" else "qwen3-computer-use")).glob("*/solver")
    assert (root / "mousepad" / "editor-new-note" / "result.txt").read_text() == "1.0\n"


# --- bad input: one paragraph, and nothing is written ----------------------------------------


def refusal(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    out: Path,
    *arguments: str,
    key: str = KEY,
) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert main(["eval", *arguments, "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("dart-gui: error: ")
    assert error.count("\n") == 1, "one paragraph"
    assert key not in error
    assert not out.exists(), "nothing is written"
    return error


@pytest.mark.browser
def test_bad_input(
    server: StandIn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(*arguments: str, key: str = KEY) -> str:
        return refusal(capsys, monkeypatch, tmp_path / "out", *arguments, key=key)

    good = ("--agent", "openai", "--model", "seeing", "--base-url", server.url)
    assert "--base-url" in refused("--agent", "openai", "--model", "seeing")
    assert "is not one" in refused(*good, "--base-url", "localhost:1")
    assert "no server at http://127.0.0.1:9/v1" in refused(
        *good, "--base-url", "http://127.0.0.1:9"
    )
    error = refused(*good, key="sk-wrong")
    assert "refuses the key" in error
    assert "OPENAI_API_KEY" in error
    error = refused(*good, "--model", "sighted")
    assert "no model 'sighted'; it has: blind, seeing, solver" in error
    assert "did you mean miniwob?" in refused(*good, "--suite", "miniwop")
    error = refused(*good, "--suite", "miniwob", "--tasks", "click-tset")
    assert "did you mean miniwob/click-test?" in error
    assert "did you mean ui-tars?" in refused(*good, "--grammar", "uitar")
    assert "--repeats 0" in refused(*good, "--repeats", "0")
    assert "--random" in refused(*good, "--random")
    assert "api.max_tokens" in refused(*good, "--max-tokens", "0")
    assert "--model needs --agent openai" in refused("--model", "seeing")


@pytest.mark.browser
def test_results_of_another_evaluation_are_left_alone(
    server: StandIn,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "args.json").write_text(json.dumps({"model": "other"}))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    arguments = ["--agent", "openai", "--model", "seeing", "--base-url", server.url, *PAGES]
    assert main(["eval", *arguments, "--out", str(out)]) == 1
    assert "model was 'other', now 'seeing'" in capsys.readouterr().err
