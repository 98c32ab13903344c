"""Safetensors files are judged by their headers, before any engine is asked to read them."""

import json
import shutil
import struct
from pathlib import Path

import pytest

from dart_gui.errors import DataError
from dart_gui.model.folder import read_token_facts
from dart_gui.model.weight_files import check_same_tensors, read_shapes, sample_digest

TINY_AGENT = Path(__file__).resolve().parents[2] / "models" / "tiny-agent"


def write_tensors(path, shapes):
    """Float32 zeros of the given shapes, by the definition of the format."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(TINY_AGENT, folder)
    (folder / "model.safetensors").unlink()
    write_tensors(folder / "model-1.safetensors", {"a": (2, 3), "b": (4,)})
    write_tensors(folder / "model-2.safetensors", {"c": ()})
    return folder


SHAPES = {"a": (2, 3), "b": (4,), "c": ()}


def test_shapes_of_all_files_together(folder):
    assert read_shapes(folder) == SHAPES
    assert check_same_tensors(folder, SHAPES) == SHAPES


def test_the_shipped_model_is_read():
    shapes = read_shapes(TINY_AGENT)
    assert shapes["lm_head.weight"] == (871, 128)


@pytest.mark.parametrize("cut", [1, 10, 40, 100])
def test_a_file_that_is_cut_off(folder, cut):
    path = folder / "model-1.safetensors"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"model-1\.safetensors"):
        read_shapes(folder)


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 64, b"\x04" + bytes(7) + b"null"])
def test_a_file_that_is_something_else(folder, content):
    (folder / "model-2.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"model-2\.safetensors"):
        read_shapes(folder)


@pytest.mark.parametrize(
    "shapes",
    [{"a": (2, 3), "b": (5,)}, {"a": (2, 3)}, {"a": (2, 3), "b": (4,), "new": (1,)}],
)
def test_other_tensors_are_refused(folder, shapes):
    write_tensors(folder / "model-1.safetensors", shapes)
    with pytest.raises(DataError, match="holds other tensors"):
        check_same_tensors(folder, SHAPES)


def test_a_file_that_the_index_names_is_missing(folder):
    index = {"weight_map": dict.fromkeys(SHAPES, "x") | {"d": "model-3.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="lacks 1 tensors that its index names"):
        read_shapes(folder)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(DataError, match="cannot take the weights"):
        read_shapes(tmp_path)


def test_the_digest_is_of_the_content(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert sample_digest(copy) == sample_digest(folder)
    path = copy / "model-1.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    assert sample_digest(copy) != sample_digest(folder)


def test_token_facts_are_those_of_the_tokenizer():
    facts = read_token_facts(TINY_AGENT)
    assert facts.eos_ids == {839, 841}
    tokens = json.loads((TINY_AGENT / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in tokens}
    assert ids["<|image_pad|>"] in facts.masked_token_ids
    assert not facts.eos_ids & set(facts.masked_token_ids)
