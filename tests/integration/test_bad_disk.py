"""A disk that is full, and one that cannot be written: each writer says so in one paragraph, leaves
nothing half-written, and goes on once there is space."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dart_gui import metrics
from dart_gui.config import Config, CurationConfig, DataConfig
from dart_gui.data.fakes import fake_trajectory
from dart_gui.data.manager import DataManager
from dart_gui.data.sampler import RoundRobinSampler
from dart_gui.errors import DartError, DataError, SetupError
from dart_gui.files import write_whole
from dart_gui.launch import run_folder
from dart_gui.launch.observe import Observer
from dart_gui.launch.process import PERMANENT_EXIT_CODE, GroupHandle
from dart_gui.launch.progress import MetricsTail
from dart_gui.launch.report import write_report
from dart_gui.launch.run_folder import RunFolder
from dart_gui.launch.tensorboard import TensorBoardSink
from dart_gui.metrics import MetricsWriter
from dart_gui.rollout.main import _remember, read_weights, write_json
from dart_gui.types import WeightsRef

ROOT = Path(__file__).resolve().parents[2]
IN_FULL = "No space left on device|File too large|disk is full|disk I/O error"
READ_ONLY = "Read-only file system|Permission denied|readonly|read-only|unable to open"


class Tmpfs:
    """A real file system of a few megabytes; needs root."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=755", "dart-test", str(path)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("a tmpfs can be mounted by root only")

    def fill(self) -> None:
        with (self.path / "ballast").open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(b"\0" * 4096)
                except OSError:
                    return

    def free(self) -> None:
        (self.path / "ballast").unlink()

    def forbid(self) -> None:
        subprocess.run(["mount", "-o", "remount,ro", str(self.path)], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)


class SizeLimit:
    """A folder in which no file may grow: the kernel refuses each write, as on a full disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._limits[1]))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)

    def forbid(self) -> None:
        for folder, _, _ in os.walk(self.path):
            os.chmod(folder, 0o555)

    def close(self) -> None:
        self.free()
        for folder, _, _ in os.walk(self.path):
            os.chmod(folder, 0o755)


Disk = Tmpfs | SizeLimit


@pytest.fixture(params=[Tmpfs, SizeLimit], ids=["tmpfs", "size-limit"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    place: Disk = request.param(tmp_path / "disk")
    yield place
    place.close()


@pytest.fixture
def closable(tmp_path: Path) -> Iterator[Disk]:
    """One that can be made read-only: root may write to any folder, but to no read-only file system."""
    place: Disk = (Tmpfs if os.geteuid() == 0 else SizeLimit)(tmp_path / "disk")
    yield place
    place.close()


def leftovers(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.name.endswith((".tmp", ".partial", ".new"))]


def is_one_paragraph(error: BaseException) -> bool:
    return isinstance(error, DartError) and "\n" not in str(error) and "Traceback" not in str(error)


def open_manager(ledger: Path, blobs: Path) -> DataManager:
    return DataManager(
        f"sqlite:///{ledger}/ledger.sqlite",
        str(blobs),
        run_id="r1",
        config=DataConfig(group_size=2, max_staleness=1),
        curation=CurationConfig(),
        groups_per_step=1,
        sampler=RoundRobinSampler(["s/a"], seed=5, train_seed=lambda rng: 1),
    )


def publish_often(manager: DataManager) -> None:
    for number in range(1000):  # a write-ahead log may have room for the first ones
        manager.publish_version(number, "/w/1")


def run_in(folder: Path) -> RunFolder:
    """A run with some measurements."""
    run = run_folder.create(Config(), folder / "runs" / "r1")
    writer = MetricsWriter(run.metrics, "runner")
    for index in range(3):
        writer.log("episode", task_id="s/a", success=index > 0, stop_reason="done")
    writer.close()
    return run


# --- a full disk -------------------------------------------------------------------------------


def test_blobs(disk: Disk, tmp_path: Path) -> None:
    with open_manager(tmp_path, disk.path / "blobs") as manager:
        manager.publish_version(0, "/w/0")
        planned = manager.next_episode(0)
        assert planned is not None
        trajectory, images = fake_trajectory(planned, run_id="r1", reward=1.0, versions=(0, 0))
        disk.fill()
        with pytest.raises(DataError, match=rf"the blob .*({IN_FULL}).*data\.blobs") as caught:
            manager.store(trajectory, images)
        assert is_one_paragraph(caught.value)
        assert leftovers(disk.path) == []
        episodes = manager.counts()["episodes"]
        assert isinstance(episodes, dict)
        assert (episodes["running"], episodes["stored"]) == (1, 0)
        disk.free()
        manager.store(trajectory, images)
        assert manager.load_trajectory(trajectory.trajectory_id) == trajectory
        assert set(manager.load_images(images)) == set(images)


def test_ledger(disk: Disk, tmp_path: Path) -> None:
    with open_manager(disk.path, tmp_path / "blobs") as manager:
        manager.publish_version(0, "/w/0")
        planned = manager.next_episode(0)
        assert planned is not None
        trajectory, images = fake_trajectory(planned, run_id="r1", reward=1.0)
        before = manager.counts()
        disk.fill()
        with pytest.raises(DataError, match=rf"the ledger .*({IN_FULL})") as caught:
            publish_often(manager)
        assert is_one_paragraph(caught.value)
        with pytest.raises(DataError, match=IN_FULL):
            manager.store(trajectory, images)
        assert manager.counts()["episodes"] == before["episodes"]
        disk.free()
        manager.store(trajectory, images)
        assert manager.load_trajectory(trajectory.trajectory_id) == trajectory
    with open_manager(disk.path, tmp_path / "blobs") as again:
        assert len(again.trajectories()) == 1


def test_metrics_lose_events_and_say_how_many(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    path = disk.path / "metrics.jsonl"
    writer = MetricsWriter(path, "trainer")
    assert writer.log("first")
    disk.fill()
    with caplog.at_level(logging.WARNING):
        num_tries = 0
        while writer.log("filler", padding="x" * 100):  # to the end of the block
            num_tries += 1
            assert num_tries < 1000
        assert not writer.log("lost")
    assert len(caplog.records) == 1, "once, not for each event"
    disk.free()
    assert writer.log("found")
    assert writer.log("last")
    writer.close()
    events = list(metrics.read(path))
    assert [event["event"] for event in events if event["event"] != "filler"] == [
        "first",
        "found",
        "last",
    ]
    assert [event.get("num_lost") for event in events[-2:]] == [2, None]
    assert MetricsTail(path).read() == events


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event":"a"}\n{"event":"b')
    writer = MetricsWriter(path, "runner")
    writer.log("c")
    writer.close()
    assert [event["event"] for event in metrics.read(path)] == ["a", "c"]


class TinyTrainer:
    """As much of a trainer as a checkpoint needs."""

    def __init__(self) -> None:
        import torch

        self.weight = torch.ones(100_000)
        # Not a real optimizer: making one imports half of torch's compiler.
        self.optimizer = SimpleNamespace(state_dict=lambda: {"exp_avg": self.weight})
        self.num_updates = 0
        self.policy = SimpleNamespace(save=self.save)

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({"weight": self.weight}, folder / "model.safetensors")


def test_weights_and_checkpoints(disk: Disk) -> None:
    pytest.importorskip("torch")
    from dart_gui.train.checkpoint import TrainerState, save_checkpoint, save_model

    trainer: Any = TinyTrainer()
    state = TrainerState(train_step=1, num_updates=1, elapsed_s=1.0)
    old = disk.path / "checkpoints" / "step-000001"
    save_checkpoint(trainer, state, old)
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    (old.parent / ".step-000009.partial").mkdir()  # of a process that was killed
    disk.fill()
    for write in (
        lambda: save_checkpoint(trainer, state, old),
        lambda: save_checkpoint(trainer, state, old.with_name("step-000002")),
        lambda: save_model(trainer.policy, disk.path / "weights" / "step-000002"),
    ):
        with pytest.raises(DataError, match=r"cannot write .*--resume") as caught:
            write()
        assert is_one_paragraph(caught.value)
    assert leftovers(disk.path) == []
    assert [path.name for path in old.parent.iterdir()] == [old.name]
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    disk.free()
    save_checkpoint(trainer, state, old.with_name("step-000002"))
    assert len(list(old.parent.iterdir())) == 2


def test_report(disk: Disk) -> None:
    run = run_in(disk.path)
    run.report.write_text("the old report")
    disk.fill()
    with pytest.raises(DataError, match=IN_FULL) as caught:
        write_report(run, Config())
    assert is_one_paragraph(caught.value)
    assert run.report.read_text() == "the old report"
    assert leftovers(run.path) == []
    disk.free()
    assert "Run r1" in write_report(run, Config()).read_text()


def test_tensorboard_is_given_up_and_nobody_stops(disk: Disk) -> None:
    run = run_in(disk.path)
    sink = TensorBoardSink(run.tensorboard)
    observer = Observer(MetricsTail(run.metrics), read_service=lambda: None, sink=sink)
    observer.look(now=100.0)
    disk.fill()
    for _ in range(200):
        observer._feed({"event": "episode", "task_id": "s/a", "reward": 1.0, "num_steps": 1})
    assert observer._sink is None
    disk.free()
    observer.look(now=200.0)
    observer.close()
    assert observer.progress.num_episodes == 3


def test_a_new_run_is_there_whole_or_not_at_all(disk: Disk) -> None:
    disk.fill()
    with pytest.raises(SetupError, match=IN_FULL) as caught:
        run_folder.create(Config(), disk.path / "runs" / "r2")
    assert is_one_paragraph(caught.value)
    assert [p for p in disk.path.rglob("*") if "r2" in p.name] == []


def test_status_files_keep_what_they_had(disk: Disk) -> None:
    run = run_in(disk.path)
    run.set_status("trainer", {"train_step": 1})
    disk.fill()
    with pytest.raises(DataError, match=IN_FULL):
        run.set_status("trainer", {"train_step": 2, "padding": "x" * 9000})
    assert run.status("trainer") == {"train_step": 1}
    assert leftovers(run.path) == []


def test_weights_are_served_though_their_number_cannot_be_kept(
    disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    path = disk.path / "weights.json"
    write_json(path, {"policy_version": 1, "path": "/w/1"})
    disk.fill()
    _remember(path, {"policy_version": 2, "path": "/w/" + "2" * 9000})
    assert "weights.json cannot be written" in caplog.text
    assert read_weights(path) == WeightsRef(policy_version=1, path="/w/1")


def test_the_exit_code_outlives_a_full_log(disk: Disk, tmp_path: Path) -> None:
    """The supervisor tells by it whether a restart could help."""
    log = disk.path / "logs" / "runner.log"
    write_whole(log, "x" * 4096)  # a whole block: nothing more fits
    disk.fill()
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "dart_gui", "runner", "--run-dir", str(tmp_path)]
    handle = GroupHandle(command, log, env)
    deadline = time.monotonic() + 120
    while (code := handle.poll()) is None:
        assert time.monotonic() < deadline
        os.sched_yield()
    assert code == PERMANENT_EXIT_CODE
    assert log.read_text() == "x" * 4096


# --- a folder that may not be written ----------------------------------------------------------


def test_a_read_only_folder(closable: Disk, tmp_path: Path) -> None:
    run = run_in(closable.path)
    with open_manager(closable.path, tmp_path / "blobs") as manager:
        manager.publish_version(0, "/w/0")
    closable.forbid()
    writers = {
        "ledger": lambda: open_manager(closable.path, tmp_path / "blobs"),
        "blobs": lambda: _put(closable.path / "blobs"),
        "metrics": lambda: MetricsWriter(closable.path / "runs" / "metrics.jsonl", "x"),
        "report": lambda: write_report(run, Config()),
        "log": lambda: GroupHandle(["true"], closable.path / "logs" / "x.log", {}),
        "status": lambda: run.set_status("runner", {}),
        "lock": lambda: run_folder.locked(run).__enter__(),
        "run": lambda: run_folder.create(Config(), closable.path / "runs" / "r2"),
        "tensorboard": lambda: TensorBoardSink(run.tensorboard),
    }
    for name, write in writers.items():
        with pytest.raises(DartError, match=READ_ONLY) as caught:
            write()
        assert is_one_paragraph(caught.value), name
    files = {path.name for path in closable.path.rglob("*")}
    assert not files & {"r2", "x.log", "blobs", "tensorboard"}


def _put(folder: Path) -> None:
    from dart_gui.data.blobs import BlobStore

    BlobStore(str(folder)).put_trajectory("t1", b"{}")


def test_the_command_line_in_a_read_only_folder(closable: Disk) -> None:
    run = run_in(closable.path)
    closable.forbid()
    done = subprocess.run(
        [sys.executable, "-m", "dart_gui", "report", str(run.path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("dart-gui: error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(run.metrics.read_text().splitlines()[0])["event"] == "episode"
