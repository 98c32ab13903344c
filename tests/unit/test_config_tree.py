from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_gui import config
from dart_gui.config import Config
from dart_gui.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.toml")), ids=lambda p: p.name)
def test_every_shipped_file_parses(path: Path) -> None:
    suite = "miniwob" if path.name.startswith("miniwob") else "desktop-mini"
    assert config.load(path).env.suite == suite


def test_there_are_shipped_files() -> None:
    assert (ROOT / "configs" / "miniwob-tiny.toml").is_file()


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("train.grad_clp=1", "did you mean train.grad_clip?"),
        ("runner.num_envs=4", "did you mean env.num_envs?"),
        ("trane.lr=1", "did you mean train?"),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match="unknown key") as caught:
        config.load(None, [override])
    assert nearest in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"runner": {"num_slots": 9}}, "raise env.num_envs or lower runner.num_slots"),
        ({"rollout": {"max_tokens": 2048}}, "leaves no room for a prompt"),
        ({"rollout": {"max_unavailable": 2}}, "exceeds rollout.num_workers = 1"),
        ({"train": {"num_minibatches": 9}}, "exceeds train.groups_per_step = 8"),
        ({"rollout": {"max_context": 9000}}, "would not fit train.max_tokens_per_microbatch"),
        ({"data": {"group_size": 1}}, "data.group_size"),
        ({"run": {"max_time_s": "soon"}}, "run.max_time_s"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.from_dict(tree, source="here")
    assert words in str(caught.value)
    assert str(caught.value).startswith("here: ")


def test_overrides_are_typed_as_toml_else_text() -> None:
    got = config.load(
        None,
        [
            "train.lr=1e-4",
            "launch.tensorboard=false",
            'env.tasks=["miniwob/click-test"]',
            "model.path=models/my agent",
            "run.dir=",
        ],
    )
    assert got.train.lr == 1e-4
    assert got.launch.tensorboard is False
    assert got.env.tasks == ["miniwob/click-test"]
    assert got.model.path == "models/my agent"
    assert got.run.dir == ""


@pytest.mark.parametrize("override", ["lr=1", "train.lr", ".lr=1", "train.=1", ""])
def test_an_override_has_a_section_a_key_and_a_value(override: str) -> None:
    with pytest.raises(ConfigError, match=r"not of the form section\.key=value"):
        config.load(None, [override])


def test_an_override_wins_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[train]\nlr = 1.0\ngrad_clip = 2.0\n")
    got = config.load(path, ["train.lr=3.0"])
    assert (got.train.lr, got.train.grad_clip) == (3.0, 2.0)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot read the configuration"), (b"[train\n", "not valid TOML"), (b"\xff", "TOML")],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "c.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        config.load(path)


TEXT = st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"], exclude_characters="\x7f")


@given(
    lr=st.floats(0, 1e3, allow_nan=False),
    text=st.text(TEXT, max_size=30),
    steps=st.integers(0, 10**12),
    tasks=st.lists(st.text(TEXT, max_size=10), max_size=3),
)
def test_the_dump_reads_back_the_same(lr: float, text: str, steps: int, tasks: list[str]) -> None:
    tree = {
        "train": {"lr": lr},
        "model": {"path": text},
        "run": {"max_train_steps": steps},
        "env": {"tasks": tasks},
    }
    before = Config.model_validate(tree)
    assert config.from_dict(tomllib.loads(config.dump(before)), source="dump") == before


def test_the_tree_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().train.lr = 1.0  # type: ignore[misc]
