"""The folder of a run: its paths, its birth (whole or not at all), how it is found, its lock."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dart_gui import config as config_module
from dart_gui.config import Config
from dart_gui.errors import ConfigError, SetupError
from dart_gui.files import write_whole, writing

LATEST = "latest"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class RunFolder:
    path: Path

    @property
    def run_id(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def token(self) -> Path:
        return self.path / "token"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def report(self) -> Path:
        return self.path / "report.md"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def pinned(self) -> Path:
        return self.path / "pinned"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best"

    @property
    def lock(self) -> Path:
        return self.path / "supervisor.lock"

    def log(self, process: str) -> Path:
        return self.path / "logs" / f"{process}.log"

    def status(self, process: str) -> dict[str, Any]:
        """What a process last said of itself; empty where it has said nothing (yet)."""
        try:
            value = json.loads((self.path / "status" / f"{process}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def set_status(self, process: str, value: Mapping[str, Any]) -> None:
        write_whole(self.path / "status" / f"{process}.json", json.dumps(value))

    def load_config(self) -> Config:
        return config_module.load(self.config)


def new_run_id(now: float, suffix: str | None = None) -> str:
    """``20260131-142501-9f3c``: sorts by time, unique on one machine.

    ``now`` is in Unix seconds; the text is local time.
    """
    return time.strftime("%Y%m%d-%H%M%S-", time.localtime(now)) + (suffix or secrets.token_hex(2))


def place_for(config: Config, *, name: str | None, run_dir: str | None, now: float) -> Path:
    """Where a new run goes. Raises ConfigError where something is there already."""
    if name and not _NAME.fullmatch(name):
        raise ConfigError(
            f"--name {name!r} cannot name a folder: use letters, digits, '.', '_' and '-'"
        )
    place = Path(run_dir) if run_dir else Path(config.run.dir) / (name or new_run_id(now))
    if place.name == LATEST and not run_dir:
        raise ConfigError(f"--name {LATEST} is taken: {config.run.dir}/{LATEST} is the newest run")
    if place.exists() or place.is_symlink():
        raise ConfigError(
            f"{place} exists already. Continue that run with `dart-gui train --resume {place}`, "
            "or choose another --name or --run-dir."
        )
    return place.absolute()


def create(config: Config, place: Path, *, latest: bool = True) -> RunFolder:
    """Make the folder of a new run: under another name first, so that it appears whole.

    Raises:
        SetupError: the folder cannot be written.
    """
    draft = ours = place.with_name(f".{place.name}.{os.getpid()}.new")
    try:
        (draft / "logs").mkdir(parents=True)
        (draft / "status").mkdir()
        (draft / "config.toml").write_text(config_module.dump(config), encoding="utf-8")
        write_secret(draft / "token", secrets.token_urlsafe(32))
        ours = draft.rename(place)
        if latest:
            point_latest_at(place)
    except OSError as error:
        shutil.rmtree(ours, ignore_errors=True)
        raise SetupError(
            f"cannot create the run folder {place}: {error.strerror or error}. "
            "Check the permissions and the free space, or choose another run.dir."
        ) from None
    return RunFolder(place)


def point_latest_at(place: Path) -> None:
    """Swap the symlink in one move; a real file of that name is left alone."""
    link = place.parent / LATEST
    if link.exists() and not link.is_symlink():
        return
    draft = place.parent / f".{LATEST}.{os.getpid()}"
    draft.unlink(missing_ok=True)
    draft.symlink_to(place.name)
    draft.replace(link)


def find(run: str, runs_dir: str) -> RunFolder:
    """The run that ``run`` means: a path, the name of a folder in ``runs_dir``, or ``latest``.

    Raises:
        ConfigError: there is no such run; says which there are.
    """
    for candidate in (Path(runs_dir) / run, Path(run)):
        if (candidate / "config.toml").is_file():
            return RunFolder(candidate.resolve())
    known = sorted(path.parent.name for path in Path(runs_dir).glob("*/config.toml"))
    known = [name for name in known if name != LATEST][-5:]
    where = f"the runs in {runs_dir} are: {', '.join(known)}" if known else f"{runs_dir} has no run"
    what = "a run to resume" if run == LATEST else f"the run {run!r}"
    raise ConfigError(
        f"cannot find {what}: {where}. Give a run's name or the path of its folder (which holds "
        "its config.toml), or start a new run with `dart-gui train CONFIG`."
    )


@contextlib.contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Hold the run; the system lets go of it when this process dies, however that happens.

    Raises:
        SetupError: another supervisor holds it.
        DataError: its folder cannot be written.
    """
    with writing(f"the lock {folder.lock}"):
        descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise SetupError(
                f"the run {folder.run_id} is in the hands of another supervisor (process {owner}). "
                "Stop that one first (Ctrl-C there, or `kill` it), or start a new run."
            ) from None
        with writing(f"the lock {folder.lock}"):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def write_secret(path: Path, text: str) -> None:
    """Readable by the owner alone from the first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
