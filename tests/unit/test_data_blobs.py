import hashlib

import pytest

from dart_gui.data.blobs import BlobStore, decode_trajectory, encode_trajectory
from dart_gui.data.fakes import fake_image, fake_trajectory
from dart_gui.errors import ConfigError, DataError
from dart_gui.types import (
    CallUser,
    Click,
    Drag,
    Finished,
    Hotkey,
    Hover,
    KeyDown,
    KeyUp,
    PlannedEpisode,
    Point,
    Press,
    Scroll,
    Step,
    Task,
    TypeText,
    Wait,
)

PLANNED = PlannedEpisode(
    episode_id="g000001-00", group_id="g000001", task=Task(task_id="s/a", seed=3), attempt=1, seed=9
)
ACTIONS = [
    Click(point=Point(1.5, 2.25), button="right", count=2),
    Hover(point=Point(0.1, 1e-9)),
    Drag(start=Point(1, 2), end=Point(3, 4)),
    Scroll(direction="left"),
    Scroll(direction="down", point=Point(5, 6)),
    Hotkey(keys=("ctrl", "c")),
    Press(key="enter"),
    KeyDown(key="a"),
    KeyUp(key="a"),
    TypeText(text='ü"\\\n\u2028 \x00 '),
    Wait(),
    Finished(text="x"),
    CallUser(),
]


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    url = str(tmp_path / "blobs") if request.param == "folder" else f"memory://{tmp_path.name}"
    return BlobStore(url)


def test_a_trajectory_reads_back_equal_with_every_kind_of_action():
    record, _ = fake_trajectory(PLANNED, run_id="r", reward=1.0, versions=(4, 5, 5))
    steps = [
        Step(index=s.index, completion=s.completion, actions=ACTIONS, parse_error="p\n")
        for s in record.steps
    ]
    object.__setattr__(record, "steps", steps)
    again = decode_trajectory(encode_trajectory(record), "it")
    assert again == record
    assert [type(a) for a in again.steps[0].actions] == [type(a) for a in ACTIONS]


def test_floats_read_back_bit_exact():
    record, _ = fake_trajectory(PLANNED, run_id="r", reward=0.1 + 0.2, versions=(0,) * 4)
    again = decode_trajectory(encode_trajectory(record), "it")
    assert again.reward.hex() == record.reward.hex()
    for old, new in zip(record.steps, again.steps, strict=True):
        assert [x.hex() for x in new.completion.rollout_logprobs] == [
            x.hex() for x in old.completion.rollout_logprobs
        ]


def test_a_foreign_json_is_refused():
    with pytest.raises(DataError, match="this file is not a trajectory"):
        decode_trajectory(b'{"trajectory_id": "x"}', "this file")


def test_images_round_trip(store):
    sha, png = fake_image("a")
    store.put_images({sha: png})
    store.put_images({sha: png})
    assert store.image(sha) == png


def test_an_image_under_a_wrong_name_is_refused(store):
    sha, _ = fake_image("a")
    with pytest.raises(DataError, match=f"named {sha} has the sha256"):
        store.put_images({sha: b"other"})
    with pytest.raises(DataError, match="neither in the blobs"):
        store.require_images([sha])


def test_a_missing_blob_says_what_to_do(store):
    with pytest.raises(DataError, match="start a new run"):
        store.image("0" * 64)


def test_layout_and_deduplication(tmp_path):
    store = BlobStore(str(tmp_path))
    sha, png = fake_image("a")
    store.put_images({sha: png})
    path = tmp_path / "images" / sha[:2] / f"{sha}.png"
    before = path.stat().st_mtime_ns, path.stat().st_ino
    store.put_images({sha: png})
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    store.put_trajectory("t1", b"{}")
    assert (tmp_path / "trajectories" / "t1" / "trajectory.json").read_bytes() == b"{}"
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]


def test_damage_is_found_on_read(tmp_path):
    store = BlobStore(str(tmp_path))
    sha, png = fake_image("a")
    store.put_images({sha: png})
    (tmp_path / "images" / sha[:2] / f"{sha}.png").write_bytes(png[:-1])
    with pytest.raises(DataError, match="is damaged"):
        store.image(sha)
    record, _ = fake_trajectory(PLANNED, run_id="r", reward=1.0)
    data = encode_trajectory(record)
    store.put_trajectory("t1", data)
    assert store.trajectory("t1", hashlib.sha256(data).hexdigest()) == record
    with pytest.raises(DataError, match="the ledger has 0000"):
        store.trajectory("t1", "0" * 64)


@pytest.mark.parametrize("trajectory_id", ["", "../x", "a/b", ".hidden"])
def test_an_id_cannot_leave_its_folder(tmp_path, trajectory_id):
    with pytest.raises(DataError, match="cannot name a folder"):
        BlobStore(str(tmp_path)).put_trajectory(trajectory_id, b"")


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dart_gui.files.os.replace", full)
    with pytest.raises(DataError, match=r"the blob .*No space left on device.*data\.blobs"):
        BlobStore(str(tmp_path / "a")).put_trajectory("t1", b"x")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_an_unknown_protocol_is_a_config_error():
    with pytest.raises(ConfigError, match=r"data\.blobs"):
        BlobStore("nosuch://x")
