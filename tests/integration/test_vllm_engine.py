"""Exactness, weights in place, and loads that fail, on a real vLLM server."""

import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dart_gui.errors import DataError
from dart_gui.types import WeightsRef

pytestmark = pytest.mark.vllm
TINY_AGENT = Path(__file__).resolve().parents[2] / "models" / "tiny-agent"
MAX_NATS = 2e-3  # float32 on both sides; what differs is the order of sums


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Makes folders like the tiny agent's, with every weight changed by ``scale`` of its spread."""
    from safetensors.torch import load_file, save_file
    from torch import Generator, randn

    def make(name, *, scale=0.2, value=None):
        folder = tmp_path_factory.mktemp("weights") / name
        shutil.copytree(TINY_AGENT, folder)
        tensors = load_file(folder / "model.safetensors")
        generator = Generator().manual_seed(len(name))
        for key, tensor in tensors.items():
            noise = randn(tensor.shape, generator=generator) * tensor.std().nan_to_num()
            tensors[key] = tensor * 0 + value if value is not None else tensor + scale * noise
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def requests(seed=0, temperature=1.0):
    from dart_gui.train.parity import sample_requests

    return sample_requests(seed, temperature=temperature, max_tokens=24)


def answers(engine, asked):
    futures = [engine.submit(request) for request in asked]
    return [future.result(120) for future in futures]


def difference(folder, asked, results):
    """Nats between the server and the trainer's own forward pass over the recorded ids."""
    from dart_gui.model.policy_model import PolicyModel
    from dart_gui.train.parity import compare

    return compare(PolicyModel(folder, device="cpu"), asked, results).max_abs


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_log_probabilities_are_those_that_the_trainer_computes(vllm_engine, temperature):
    engine = vllm_engine()
    asked = requests(temperature=temperature)
    results = answers(engine, asked)
    assert all(len(result.response_ids) >= 1 for result in results)
    if temperature == 0.0:  # scored at temperature 1, as the other engine does
        asked = requests(temperature=1.0)
    assert difference(TINY_AGENT, asked, results) < MAX_NATS


def test_the_prompt_is_the_one_that_the_other_engine_renders(vllm_engine):
    from dart_gui.model.policy_model import PolicyModel

    model = PolicyModel(TINY_AGENT, device="cpu")
    engine = vllm_engine()
    for request, result in zip(requests(), answers(engine, requests()), strict=True):
        grids = {name: model.pixels(png).grid for name, png in request.images.items()}
        assert result.prompt_ids == model.render(request.messages, grids).prompt_ids
        assert result.image_hashes == model.render(request.messages, grids).image_hashes
        assert result.masked_token_ids == model.masked_token_ids
        assert result.text == model.decode(result.response_ids)


def test_entropies_grow_to_the_exact_one_with_the_alternatives(vllm_engine):
    few, many = vllm_engine(top_logprobs=2), vllm_engine(top_logprobs=20)
    asked = requests()
    for low, high in zip(answers(few, asked), answers(many, asked), strict=True):
        assert low.response_ids == high.response_ids
        pairs = list(zip(low.entropies, high.entropies, strict=True))
        assert all(a <= b + 1e-6 for a, b in pairs)
        assert all(0 <= b <= math.log(871) for _, b in pairs)


def test_weights_are_taken_in_place_and_nothing_of_the_old_ones_is_left(vllm_engine, checkpoint):
    """The same prompts and images before and after: KV blocks or image features that some cache kept
    would show in the log-probabilities."""
    engine = vllm_engine()
    before, asked = engine.fingerprint, requests()
    old = answers(engine, asked)
    for version, name in enumerate(("a", "bb", "ccc"), start=1):
        folder = checkpoint(name)
        engine.load_weights(WeightsRef(policy_version=version, path=str(folder)))
        assert engine.policy_version == version
        new = answers(engine, asked)
        assert [n.response_ids for n in new] != [o.response_ids for o in old]
        assert difference(folder, asked, new) < MAX_NATS
    assert before.difference(engine.fingerprint)
    engine.load_weights(WeightsRef(policy_version=4, path=str(TINY_AGENT)))
    assert not before.difference(engine.fingerprint)
    assert difference(TINY_AGENT, asked, answers(engine, asked)) < MAX_NATS


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def another_shape(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(tensors) if tensors[name].dim() == 2)
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def another_architecture(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace("Qwen2_5_VLFor", "Qwen3VLFor"))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("spoil", [truncate, another_shape, another_architecture, no_weights])
def test_a_folder_that_is_not_right_never_reaches_the_server(vllm_engine, tmp_path, spoil):
    folder = tmp_path / "bad"
    shutil.copytree(TINY_AGENT, folder)
    spoil(folder)
    engine = vllm_engine()
    before = answers(engine, requests())
    with pytest.raises(DataError):
        engine.load_weights(WeightsRef(policy_version=1, path=str(folder)))
    assert (engine.policy_version, engine.failures) == (0, [])
    assert [a.response_ids for a in answers(engine, requests())] == [a.response_ids for a in before]


def test_weights_that_make_no_sense_are_taken_back(vllm_engine, checkpoint):
    """The server takes them without complaint; the probe's answer is no distribution."""
    engine = vllm_engine()
    before = answers(engine, requests())
    with pytest.raises(DataError, match="cannot take the weights"):
        engine.load_weights(
            WeightsRef(policy_version=1, path=str(checkpoint("nan", value=math.nan)))
        )
    assert (engine.policy_version, engine.failures) == (0, [])
    after = answers(engine, requests())
    assert [a.response_ids for a in after] == [a.response_ids for a in before]
    assert difference(TINY_AGENT, requests(), after) < MAX_NATS


def test_repeated_images_and_prompts_survive_a_soak_of_updates(vllm_engine, checkpoint):
    """The server's caches of images live in two processes that an update must not part."""
    engine = vllm_engine()
    folders = [TINY_AGENT, checkpoint("x", scale=0.05)]
    asked = requests() * 3
    with ThreadPoolExecutor(1) as pool:
        for version in range(1, 9):
            results = pool.submit(answers, engine, asked).result()
            assert len(results) == len(asked)
            folder = folders[version % 2]
            engine.load_weights(WeightsRef(policy_version=version, path=str(folder)))
    assert engine.failures == []
