"""Adapters on a real vLLM server: exactness, versions swapped under load, and loads that fail."""

import asyncio
import json
import math
import shutil
import time
from pathlib import Path

import pytest

from dart_gui.config import from_dict
from dart_gui.errors import DataError
from dart_gui.rollout.client import RolloutClient
from dart_gui.rollout.service import serve
from dart_gui.types import SamplingParams, WeightsRef

pytestmark = pytest.mark.vllm
TINY_AGENT = Path(__file__).resolve().parents[2] / "models" / "tiny-agent"
MAX_NATS = 2e-3  # float32 on both sides; what differs is the order of sums
RANK = 8
TOKEN = "a-token-of-this-test"
WAIT_S = 300


def make_adapter(folder, *, seed, rank=RANK, scale=0.05):
    """As the trainer publishes them; ``scale`` 0 changes nothing."""
    import torch

    from dart_gui.model.adapter_files import BLOCK_OF
    from dart_gui.model.lora import LoraPolicy

    policy = LoraPolicy(TINY_AGENT, rank=rank, alpha=16, targets=tuple(BLOCK_OF), device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in policy.network.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    policy.save(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    place = tmp_path_factory.mktemp("adapters")
    return [make_adapter(place / f"v{seed}", seed=seed) for seed in (1, 2, 3)]


@pytest.fixture
def engine(vllm_lora_url):
    from dart_gui.rollout.engines.vllm_engine import VllmEngine
    from dart_gui.rollout.engines.vllm_server import ModelSettings, VllmSettings

    failures = []
    engine = VllmEngine(
        ModelSettings(
            folder=TINY_AGENT,
            max_context=1024,
            max_batch_size=8,
            dtype="float32",
            threads=1,
            lora_rank=RANK,
        ),
        VllmSettings(url=vllm_lora_url, args=[], env=[], start_timeout_s=2 * WAIT_S),
        policy_version=0,
        request_timeout_s=WAIT_S,
        on_failure=lambda: failures.append("given up"),
    )
    engine.failures = failures
    yield engine
    engine.close()


def requests():
    from dart_gui.train.parity import sample_requests

    return sample_requests(0, temperature=1.0, max_tokens=24)


def answers(engine):
    futures = [engine.submit(request) for request in requests()]
    return [future.result(WAIT_S) for future in futures]


def difference(folder, results):
    """Nats between the server and the trainer's own forward pass, by the policy that it trains."""
    from dart_gui.model.lora import LoraPolicy
    from dart_gui.model.policy_model import PolicyModel
    from dart_gui.train.parity import compare

    if folder == TINY_AGENT:
        policy = PolicyModel(TINY_AGENT, device="cpu")
    else:
        settings = json.loads((folder / "adapter_config.json").read_text())
        targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        policy = LoraPolicy(TINY_AGENT, rank=settings["r"], alpha=16, targets=targets, device="cpu")
        policy.load_weights(folder)
    return compare(policy, requests(), results).max_abs


def loaded(engine):
    names = engine._await(engine._api.models())
    return [model["id"] for model in names[1:]]


def take(engine, version, folder):
    engine.load_weights(WeightsRef(policy_version=version, path=str(folder)))


def test_every_version_computes_what_the_trainer_does(engine, adapters):
    """The same prompts and images each time: what some cache kept of another one would show."""
    assert difference(TINY_AGENT, answers(engine)) < MAX_NATS
    for version, folder in enumerate([*adapters, adapters[0]], start=1):
        take(engine, version, folder)
        results = answers(engine)
        assert difference(folder, results) < MAX_NATS
        assert difference(adapters[version % 3], results) > 10 * MAX_NATS
        assert len(loaded(engine)) == 1
    take(engine, 9, TINY_AGENT)
    assert difference(TINY_AGENT, answers(engine)) < MAX_NATS
    assert (loaded(engine), engine.policy_version, engine.failures) == ([], 9, [])


def test_an_adapter_that_changes_nothing_is_not_taken_for_one_that_failed(engine, tmp_path):
    take(engine, 1, make_adapter(tmp_path / "zero", seed=1, scale=0.0))
    assert difference(TINY_AGENT, answers(engine)) < MAX_NATS
    take(engine, 2, make_adapter(tmp_path / "one", seed=1))
    assert engine.policy_version == 2


def cut_off(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def another_rank(folder):
    shutil.rmtree(folder)
    make_adapter(folder, seed=4, rank=2 * RANK)


def rank_in_the_settings_only(folder):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": RANK // 2}))


def another_base(folder):
    (folder / "dart_adapter.json").write_text('{"base_digest": "0123"}')


def not_finite(folder):
    """Goes past every header: the server takes it, and its answers make no sense."""
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file({name: value * math.nan for name, value in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("spoil", "calls"),
    [
        (cut_off, 0),
        (another_rank, 0),
        (rank_in_the_settings_only, 0),
        (another_base, 0),
        (not_finite, 1),
    ],
)
def test_an_adapter_that_is_not_right_leaves_the_old_one(engine, adapters, tmp_path, spoil, calls):
    take(engine, 1, adapters[0])
    bad = Path(shutil.copytree(adapters[1], tmp_path / "bad"))
    spoil(bad)
    seen = []
    load_adapter = engine._api.load_adapter

    async def counted(name, folder):
        seen.append(name)
        await load_adapter(name, folder)

    engine._api.load_adapter = counted
    names = loaded(engine)
    with pytest.raises(DataError):
        take(engine, 2, bad)
    assert (len(seen), loaded(engine), engine.policy_version) == (calls, names, 1)
    assert difference(adapters[0], answers(engine)) < MAX_NATS
    take(engine, 3, adapters[2])
    assert difference(adapters[2], answers(engine)) < MAX_NATS
    assert engine.failures == []


def test_a_load_that_the_server_refuses_leaves_the_old_one(engine, adapters, tmp_path):
    """Its folder goes between our look and the server's; the one before goes too, and is served."""
    old = Path(shutil.copytree(adapters[0], tmp_path / "old"))
    take(engine, 1, old)
    new = Path(shutil.copytree(adapters[1], tmp_path / "new"))
    load_adapter = engine._api.load_adapter

    async def too_late(name, folder):
        shutil.rmtree(new)
        shutil.rmtree(old)
        await load_adapter(name, folder)

    engine._api.load_adapter = too_late
    with pytest.raises(DataError, match="load_lora_adapter"):
        take(engine, 2, new)
    assert difference(adapters[0], answers(engine)) < MAX_NATS
    assert (engine.policy_version, engine.failures) == (1, [])


def test_an_adopted_server_gets_rid_of_what_it_had(engine, adapters, vllm_lora_url):
    take(engine, 1, adapters[0])
    assert len(loaded(engine)) == 1
    engine._await(
        engine._swapping_by.begin(
            engine._api,
            engine._swapping_by.check(WeightsRef(policy_version=0, path=str(TINY_AGENT))),
            adopted=True,
        )
    )
    assert loaded(engine) == []


async def test_versions_change_under_load(vllm_lora_url, adapters):
    """The whole service: each completion is of one version, and is what the trainer computes with the
    adapter of that version."""
    config = from_dict(
        {
            "model": {"path": str(TINY_AGENT), "device": "cpu"},
            "train": {"lora_rank": RANK},
            "rollout": {
                "engine": "vllm",
                "num_workers": 1,
                "max_context": 1024,
                "max_tokens": 16,
                "max_batch_size": 8,
                "request_timeout_s": float(WAIT_S),
            },
            "vllm": {"urls": [vllm_lora_url], "start_timeout_s": float(2 * WAIT_S)},
        },
        source="test",
    )
    completions, stop = [], asyncio.Event()

    async def ask(client, number):
        messages = [{"role": "user", "content": f"Click button {number}."}]
        sampling = SamplingParams(temperature=1.0, max_tokens=12, seed=number)
        return await client.complete(messages, {}, sampling, trajectory_id=f"t{number % 4}")

    async def episode(client, number):
        while not stop.is_set():
            completions.append(await ask(client, number))
            number += 10

    async def until(condition, what):
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}"
            await asyncio.sleep(0.02)

    async with (
        serve(config, token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=2 * WAIT_S) as client,
    ):
        (slot,) = service.fleet.slots
        episodes = [asyncio.create_task(episode(client, first)) for first in range(4)]
        for version, folder in enumerate([TINY_AGENT, *adapters, adapters[0]]):
            if version:
                await client.publish(WeightsRef(policy_version=version, path=str(folder)))
            await until(lambda v=version: slot.policy_version == v, f"version {version}")
            before = len(completions)
            await until(lambda n=before: len(completions) > n + 8, "answers")
        stop.set()
        await asyncio.gather(*episodes)
        assert (slot.restarts, service.fleet.update_error) == (0, None)
    folders = dict(enumerate([TINY_AGENT, *adapters, adapters[0]]))
    assert {completion.policy_version for completion in completions} == folders.keys()
    for version, folder in folders.items():
        of_version = [each for each in completions if each.policy_version == version]
        assert worst(folder, of_version) < MAX_NATS


def worst(folder, completions):
    """Nats between ``completions`` and the trainer."""
    import torch

    from dart_gui.model.policy_model import PolicyModel
    from dart_gui.train.forward import response_logprobs
    from dart_gui.train.samples import Sample

    samples = [
        Sample(
            trajectory_id="t",
            prompt_ids=each.prompt_ids,
            response_ids=each.response_ids,
            rollout_logprobs=each.rollout_logprobs,
            image_hashes=[],
            masked_token_ids=each.masked_token_ids,
            temperature=1.0,
            policy_version=each.policy_version,
            advantage=0.0,
            weight=1.0,
        )
        for each in completions
    ]
    policy = PolicyModel(folder, device="cpu")
    with torch.no_grad():
        logprobs, _ = response_logprobs(policy, samples, lambda _: pytest.fail("no image"))
    rollout = torch.tensor([value for each in samples for value in each.rollout_logprobs])
    return float((logprobs - rollout).abs().max())
