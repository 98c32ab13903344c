"""The run that is watched, with an env server of its own where that is asked for."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.results import ROOT
from dart_gui.files import write_whole

START_S = 120.0
END_S = 120.0


class Follower:
    """The events of a metrics file as it grows; each is read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._rest = b""
        self.num_leased = 0
        self.num_episodes = 0
        self.num_train_steps = 0
        self.num_envs_replaced = 0

    def read(self) -> None:
        if self._file is None:
            if not self._path.exists():
                return
            self._file = self._path.open("rb")
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):  # cut off by a process that was killed
                self._count(json.loads(line))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _count(self, event: dict[str, Any]) -> None:
        self.num_episodes += event.get("event") == "episode"
        self.num_train_steps += event.get("event") == "train_step"
        if event.get("event") == "runner":
            self.num_leased = int(event["num_envs_busy"])
            self.num_envs_replaced = int(event["num_envs_replaced"])


@dataclass(frozen=True, slots=True)
class Server:
    """An env server of the run's own."""

    process: subprocess.Popen[bytes]
    url: str
    token_file: Path

    def num_leased(self) -> int:
        headers = {"Authorization": f"Bearer {self.token_file.read_text().strip()}"}
        request = urllib.request.Request(f"{self.url}/v1/status", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return int(json.load(response)["num_leased"])

    def overrides(self) -> list[str]:
        return [f'--env.servers=["{self.url}"]', f"--env.server_token_file={self.token_file}"]


@contextlib.contextmanager
def started(command: list[str], log: Path, environ: dict[str, str]) -> Iterator[Any]:
    """A process that is asked to end with the block, and is waited for."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environ
        )
        try:
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def server(place: Path, environ: dict[str, str], *, num_desktops: int) -> Iterator[Server]:
    """Raises ``RuntimeError`` where it does not start."""
    folder = place / "s"
    command = [sys.executable, "-m", "dart_gui", "env-server", "--dir", str(folder)]
    command += ["--desktops", str(num_desktops), "--spares", "1"]
    command += ["--width", "480", "--height", "320"]
    log = place / "server.log"
    with started(command, log, environ) as process:
        status = folder / "server.json"
        _until(lambda: status.exists() or process.poll() is not None, "the env server", START_S)
        if not status.exists():
            raise RuntimeError(f"the env server did not start: {log.read_text()[-2000:]}")
        yield Server(process, json.loads(status.read_text())["url"], folder / "token")


def train_command(config: Path, folder: Path, seconds: float, overrides: list[str]) -> list[str]:
    fixed = [f"--run.max_time_s={seconds:g}", "--eval.before_after=false"]
    train = ["train", str(config), "--run-dir", str(folder)]
    return [sys.executable, "-m", "dart_gui", *train, *fixed, *overrides]


def audit(folder: Path, environ: dict[str, str]) -> str:
    """What `dart-gui db check` finds; empty for nothing."""
    command = [sys.executable, "-m", "dart_gui", "db", "check", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else f"{done.stdout}{done.stderr}".strip()


def keep_log(place: Path, out: Path) -> None:
    write_whole(out / "soak.log", (place / "train.log").read_text(encoding="utf-8"))


def _until(condition: Callable[[], bool], what: str, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} was not ready within {limit_s:g} s")
        time.sleep(0.1)
