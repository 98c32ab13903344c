"""``dart-gui db check`` on a run with something in every state, whole and damaged in each way."""

import hashlib
import json
import shutil
import sqlite3
import struct
import zipfile
from pathlib import Path

import pytest

from dart_gui import cli
from dart_gui.config import Config, dump, from_dict
from dart_gui.data.fakes import fake_trajectory
from dart_gui.data.manager import DataManager
from dart_gui.data.sampler import RoundRobinSampler
from dart_gui.metrics import MetricsWriter
from dart_gui.types import StopReason

TRAINED, RETURNED_ONCE, COMPLETE, SKIPPED, CANCELLED, OPEN = (f"g00000{n}" for n in range(6))


def write_weights(folder: Path) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    header = json.dumps({"t": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    data = struct.pack("<Q", len(header)) + header + b"\0" * 4
    (folder / "model.safetensors").write_bytes(data)
    return str(folder)


def write_checkpoint(folder: Path, train_step: int) -> str:
    write_weights(folder)
    (folder / "state.json").write_text(json.dumps({"train_step": train_step}))
    with zipfile.ZipFile(folder / "optimizer.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"moments" * 100)
    return str(folder)


class Script:
    """Drives a data manager through the life of a run."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder = folder
        self.metrics = MetricsWriter(folder / "metrics.jsonl", "test", clock=lambda: 0.0)
        sampler = RoundRobinSampler(["s/a", "s/b"], seed=5, train_seed=lambda rng: rng.randrange(9))
        self.manager = DataManager.open(folder, config, sampler=sampler)

    def next(self):
        planned = self.manager.next_episode(self.manager.latest_version())
        assert planned is not None
        return planned

    def store(self, reward: float) -> None:
        planned, version = self.next(), self.manager.latest_version()
        trajectory, images = fake_trajectory(
            planned, run_id=self.folder.name, reward=reward, versions=(version, version)
        )
        self.manager.store(trajectory, images)
        self.metrics.log("episode", trajectory_id=trajectory.trajectory_id)

    def train(self, train_step: int) -> None:
        assert self.manager.claim_batch(train_step) is not None
        version = self.manager.latest_version() + 1
        path = write_weights(self.folder / "weights" / f"v{version:06d}")
        assert self.manager.publish_version(train_step, path).policy_version == version
        self.metrics.log("train_step", train_step=train_step, policy_version=version)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in the middle of everything; the tests damage copies of it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    tree = {
        "data": {"group_size": 2, "max_staleness": 3},
        "train": {"groups_per_step": 1},
        "runner": {"max_attempts": 2},
    }
    config = from_dict(tree, source="test")
    (folder / "config.toml").write_text(dump(config))
    run = Script(folder, config)
    run.manager.publish_version(0, write_weights(folder / "initial"))
    run.store(0.0), run.store(1.0)
    run.train(1)
    checkpoint = write_checkpoint(folder / "checkpoints" / "step-000001", 1)
    run.manager.acknowledge(1, checkpoint)
    run.store(0.0), run.store(1.0)
    run.train(2)
    assert run.manager.resume_from(1) == 1  # the trainer was killed, and comes back
    run.manager.publish_version(1, checkpoint)
    run.train(2)
    for reward in (0.0, 1.0, 1.0, 1.0):
        run.store(reward)
    for _ in range(4):
        run.manager.fail(run.next(), StopReason.ENV_ERROR, "the browser died")
    run.store(1.0)
    run.next()
    states = [run.manager.counts()["groups"][name] for name in ("open", "complete", "claimed")]
    assert states == [1, 1, 1]
    run.manager.close()
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A copy under the same paths, as its rows name them."""
    backup = tmp_path / "backup"
    shutil.copytree(whole, backup)
    yield whole
    shutil.rmtree(whole)
    shutil.copytree(backup, whole)


@pytest.fixture
def check(capsys):
    """Exit code and lines of ``dart-gui db check``."""

    def check(*arguments):
        code = cli.main(["db", "check", *map(str, arguments)])
        out = capsys.readouterr()
        return code, (out.out + out.err).splitlines()

    return check


def damage(folder, sql):
    conn = sqlite3.connect(folder / "ledger.sqlite")
    assert conn.execute(sql).rowcount > 0, "the damage does nothing"
    conn.commit()
    conn.close()


def files(folder):
    return {
        path: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(("-wal", "-shm"))
    }


@pytest.mark.parametrize("fast", [[], ["--fast"]], ids=["full", "fast"])
def test_a_whole_run_is_clean_whatever_is_in_flight(run, check, fast):
    before = files(run)
    code, lines = check(run, *fast)
    assert code == 0, lines
    assert "in flight: 1 open groups, with 1 episodes running" in lines[0]
    assert lines[1] == "in flight: 1 complete groups wait for the trainer"
    assert "in flight: the batch of train step 2 is published" in lines[2]
    assert "no finding in 9 trajectories, 6 groups (1 trained), 3 batches" in lines[-1]
    assert ("not read" in lines[-1]) == bool(fast)
    assert files(run) == before, "an audit changes nothing"


def test_a_run_whose_trainer_is_not_up_yet_is_clean_and_is_named_later(tmp_path, check):
    folder = tmp_path / "run"
    folder.mkdir()
    config = from_dict({"data": {"group_size": 2}, "train": {"groups_per_step": 1}}, source="test")
    (folder / "config.toml").write_text(dump(config))
    run = Script(folder, config)
    run.manager.latest_version = lambda: 0  # what the service serves from the start
    run.store(0.0)
    code, lines = check(folder)
    assert code == 0, lines
    run.manager.publish_version(0, write_weights(folder / "initial"))
    run.store(1.0)
    code, lines = check(folder)
    assert code == 0, lines
    run.manager.close()


def test_it_does_not_wait_for_a_writer_nor_hold_one_up(run, check):
    writer = sqlite3.connect(run / "ledger.sqlite", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE task_group SET state = 'lost'")  # not committed: it does not count
    assert check(run)[0] == 0
    writer.execute("ROLLBACK")
    writer.close()


ROWS = [
    ("UPDATE task_group SET state = 'lost' WHERE group_id = '{COMPLETE}'", "state 'lost'"),
    ("UPDATE episode SET state = 'lost' WHERE state = 'running'", "state 'lost'"),
    ("DELETE FROM episode WHERE episode_id = '{COMPLETE}-01'", "has the members [0]"),
    ("DELETE FROM task_group WHERE group_id = '{OPEN}'", "there is no such group"),
    ("UPDATE episode SET state = 'cancelled', reason = 'x' WHERE state = 'running'", "is left to"),
    ("UPDATE episode SET state = 'planned' WHERE episode_id = '{COMPLETE}-01'", "still planned or"),
    ("UPDATE task_group SET closed_at = NULL WHERE state = 'trained'", "closed_at is None"),
    ("UPDATE task_group SET reason = NULL WHERE state = 'cancelled'", "with the reason None"),
    ("UPDATE task_group SET reason = NULL WHERE state = 'skipped'", "with the reason None"),
    (
        "UPDATE task_group SET state = 'cancelled', reason = 'x' WHERE group_id = '{COMPLETE}'",
        "with 2 of 2 members stored",
    ),
    ("UPDATE task_group SET state = 'complete', reason = NULL WHERE state = 'cancelled'", "0 of 2"),
    ("UPDATE task_group SET batch_id = 3 WHERE group_id = '{COMPLETE}'", "yet belongs to batch 3"),
    ("DELETE FROM train_batch WHERE state = 'published'", "in batch 3, which there is not"),
    (
        "UPDATE train_batch SET state = 'published', closed_at = NULL WHERE train_step = 1",
        "is trained, but its batch 1 is published",
    ),
    ("DELETE FROM trajectory WHERE trajectory_id = '{COMPLETE}-00'", "no trajectory: it is lost"),
    ("UPDATE episode SET reason = NULL WHERE state = 'cancelled'", "cancelled without a reason"),
    ("DELETE FROM episode_failure", "has no recorded failure"),
    ("UPDATE episode_failure SET episode_id = 'e9'", "of episode e9, which there is not"),
    ("UPDATE trajectory SET episode_id = 'e9' WHERE id = 1", "of episode e9, which there is not"),
    ("UPDATE trajectory SET group_id = 'g9' WHERE id = 1", "of group g9, which there is not"),
    ("UPDATE episode SET state = 'planned' WHERE episode_id = '{OPEN}-00'", "episode is planned"),
    ("UPDATE trajectory SET seed = seed + 1 WHERE id = 1", "planned was"),
    ("UPDATE trajectory SET reward = 1.5 WHERE id = 1", "reward 1.5, expected"),
    ("UPDATE trajectory SET stop_reason = 'timeout' WHERE id = 1", "ended by 'timeout'"),
    ("UPDATE trajectory SET num_steps = 0 WHERE id = 1", "has 0 steps"),
    ("UPDATE trajectory SET version_max = 77 WHERE id = 1", "version 77, which was never"),
    ("UPDATE trajectory SET version_min = 5 WHERE id = 1", "policy versions 5 to 0"),
    ("UPDATE trajectory SET version_min = 0 WHERE group_id = '{COMPLETE}'", "counts as planned at"),
    ("UPDATE train_batch SET staleness_max = 2 WHERE train_step = 1", "says staleness_max 2"),
    (
        "UPDATE train_batch SET trainer_version = 9, staleness_max = 9 WHERE train_step = 1",
        "trained at staleness 9, data.max_staleness is 3",
    ),
    ("UPDATE task_group SET planned_version = -9 WHERE state = 'open'", "train --resume"),
    ("UPDATE train_batch SET num_groups = 5 WHERE id = 1", "(1, 2), expected (5, 2)"),
    ("UPDATE train_batch SET closed_at = NULL WHERE state = 'acknowledged'", "closed_at is None"),
    ("UPDATE train_batch SET policy_version = NULL WHERE id = 3", "names no policy version"),
    ("UPDATE train_batch SET policy_version = 9 WHERE id = 1", "version 9, which there is not"),
    ("UPDATE train_batch SET train_step = 1 WHERE id = 3", "train step 1 has 2 batches"),
    ("DELETE FROM durable_checkpoint", "newest durable checkpoint is of train step 0"),
    ("DELETE FROM policy_version WHERE version = 1", "policy versions [1] are missing below 4"),
    ("UPDATE durable_checkpoint SET policy_version = 9", "version 9, which there is not"),
    ("DELETE FROM rollout_run WHERE id = 1", "has no row in rollout_run"),
    ("UPDATE rollout_run SET trajectory_id = 'x' WHERE id = 1", "x, which is not stored"),
    ("UPDATE rollout_run SET used = 2 WHERE id = 1", "was trained 2 times, not once"),
    ("UPDATE rollout_run SET used = 0 WHERE id = 1", "used is 0 in rollout_run"),
    ("UPDATE rollout_run SET used = 1 WHERE trajectory_id = '{COMPLETE}-00'", "used is 1 in"),
    ("UPDATE rollout_run SET reward = 0.5 WHERE id = 1", "reward is 0.5 in rollout_run"),
    ("DELETE FROM checkpoint WHERE id = 1", "have no row in the table checkpoint"),
    ("UPDATE checkpoint SET path = '/x' WHERE id = 1", "v0 at /x, which we did not publish"),
]


@pytest.mark.parametrize(("sql", "said"), ROWS, ids=[f"{sql[:60]}" for sql, _ in ROWS])
def test_a_damaged_row_is_found(run, check, sql, said):
    damage(run, sql.format(COMPLETE=COMPLETE, OPEN=OPEN))
    code, lines = check(run, "--fast")
    assert code == 1
    assert any(said in line for line in lines), lines
    assert "findings in" in lines[-1]


def trajectory_blob(run, trajectory_id):
    return run / "blobs" / "trajectories" / trajectory_id / "trajectory.json"


def rewrite(run, trajectory_id, change):
    """Another content under a sha256 that fits: damage that a hash does not show."""
    path = trajectory_blob(run, trajectory_id)
    tree = json.loads(path.read_bytes())
    change(tree)
    path.write_bytes(json.dumps(tree).encode())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    damage(
        run,
        f"UPDATE trajectory SET blob_sha256 = '{sha256}' WHERE trajectory_id = '{trajectory_id}'",
    )


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def screenshot(run):
    return next((run / "blobs" / "images").rglob("*.png"))


def shorten(run):
    rewrite(
        run, f"{TRAINED}-00", lambda tree: tree["steps"][0]["completion"]["rollout_logprobs"].pop()
    )


def renumber(run):
    (run / "checkpoints/step-000001/state.json").write_text('{"train_step": 2}')


FILES = {
    "trajectory missing": (lambda run: trajectory_blob(run, f"{TRAINED}-00").unlink(), "-00"),
    "trajectory damaged": (lambda run: flip(trajectory_blob(run, f"{TRAINED}-00")), "is damaged"),
    "token lengths": (shorten, "is not a trajectory"),
    "another reward": (
        lambda run: rewrite(run, f"{TRAINED}-00", lambda tree: tree.update(reward=0.25)),
        "reward is 0.0 in the ledger and 0.25 in its blob",
    ),
    "fewer steps": (
        lambda run: rewrite(run, f"{TRAINED}-00", lambda tree: tree["steps"].pop()),
        "num_steps is 2 in the ledger and 1 in its blob",
    ),
    "screenshot missing": (lambda run: screenshot(run).unlink(), "a screenshot of trajectory"),
    "screenshot damaged": (lambda run: flip(screenshot(run)), "a screenshot of trajectory"),
    "checkpoint missing": (
        lambda run: shutil.rmtree(run / "checkpoints/step-000001"),
        "durable checkpoint, of train step 1: the folder",
    ),
    "optimizer cut": (lambda run: cut(run / "checkpoints/step-000001/optimizer.pt"), "optimizer"),
    "optimizer damaged": (
        lambda run: flip(run / "checkpoints/step-000001/optimizer.pt"),
        "optimizer.pt is cut off or damaged",
    ),
    "checkpoint weights cut": (
        lambda run: cut(run / "checkpoints/step-000001/model.safetensors"),
        "model.safetensors is cut off",
    ),
    "state of another step": (renumber, "state.json is not of train step 1"),
    "weights missing": (
        lambda run: shutil.rmtree(run / "weights" / "v000004"),
        "weights, policy version 4: the folder",
    ),
    "weights without config": (
        lambda run: (run / "weights/v000004/config.json").write_text("["),
        "config.json is not a JSON object",
    ),
    "weights empty": (
        lambda run: (run / "weights/v000004/model.safetensors").unlink(),
        "holds no *.safetensors",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_found(run, check, name):
    break_it, said = FILES[name]
    break_it(run)
    code, lines = check(run)
    assert code == 1
    assert any(said in line for line in lines), lines


def test_what_was_reported_must_be_there(run, check):
    metrics = MetricsWriter(run / "metrics.jsonl", "test")
    metrics.log("episode", trajectory_id="g000077-01")
    metrics.log("train_step", train_step=9, policy_version=4)
    metrics.log("train_step", train_step=9, policy_version=99)
    metrics.close()
    code, lines = check(run)
    assert code == 1
    assert lines[0].startswith("trajectory g000077-01 was reported as stored")
    assert "the ledger has train step 2" in lines[1]
    assert "the ledger has no such version" in lines[2]


def test_fast_looks_whether_trajectories_are_there(run, check):
    trajectory_blob(run, f"{TRAINED}-00").unlink()
    code, lines = check(run, "--fast")
    assert code == 1
    assert f"trajectory {TRAINED}-00: its blob" in lines[0]


def test_what_cannot_be_checked_is_neither_clean_nor_a_finding(run, check, tmp_path):
    assert check("no-such-run", f"--run.dir={tmp_path}")[0] == 2
    renamed = run.with_name("renamed")
    shutil.copytree(run, renamed)
    code, lines = check(renamed)
    assert (code, len(lines)) == (2, 1)
    assert "knows no run renamed" in lines[0]
    shutil.rmtree(renamed)
    damage(run, "UPDATE ledger_meta SET value = '99'")
    code, lines = check(run)
    assert code == 2
    assert "schema version 99" in lines[0]
    for name in ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"):
        (run / name).unlink(missing_ok=True)
    assert check(run)[0] == 2
    assert not (run / "ledger.sqlite").exists(), "nothing is created"
    (run / "ledger.sqlite").write_bytes(b"not a database" * 100)
    assert check(run)[0] == 2
    (run / "config.toml").write_text("[data]\nno_such_key = 1\n")
    assert check(run)[0] == 2
