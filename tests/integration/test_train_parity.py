"""Trainer and rollout engine give the same tokens the same log-probabilities."""

from pathlib import Path

import pytest
import torch

from dart_gui.model.adapter_files import BLOCK_OF
from dart_gui.model.lora import LoraPolicy
from dart_gui.model.policy_model import PolicyModel
from dart_gui.rollout.engines import transformers_engine
from dart_gui.rollout.engines.transformers_engine import TransformersEngine
from dart_gui.train.parity import compare, measure, sample_requests
from dart_gui.types import WeightsRef

TINY_AGENT = Path(__file__).resolve().parents[2] / "models" / "tiny-agent"


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rollout_and_trainer_agree_over_text_and_images(temperature):
    """Conversations of one to four turns, zero to three screenshots, all in flight at once: first
    and last steps of episodes among them."""
    result = measure(TINY_AGENT, device="cpu", temperature=temperature)
    assert result.num_tokens > 50
    assert result.mean_abs <= 1e-3
    assert result.max_abs <= 1e-2


def test_an_engine_that_merged_an_adapter_agrees_with_the_trainer_that_did_not(tmp_path):
    """Through a base, another adapter and a prompt whose screenshots it knows already."""
    policy = LoraPolicy(TINY_AGENT, rank=8, alpha=16, targets=tuple(BLOCK_OF), device="cpu")
    for version in (1, 2):
        generator = torch.Generator().manual_seed(version)
        for name, parameter in policy.network.named_parameters():
            if ".lora_B." in name:
                parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
        policy.save(tmp_path / f"v{version}")
    requests = sample_requests(0, temperature=1.0, max_tokens=24)
    engine = TransformersEngine(
        TINY_AGENT, policy_version=0, max_batch_size=4, max_context=4096, device="cpu"
    )
    try:
        for version in (1, 2):
            path = str(tmp_path / f"v{version}")
            engine.load_weights(WeightsRef(policy_version=version, path=path))
            futures = [engine.submit(request) for request in requests]
            results = [future.result(timeout=600) for future in futures]
    finally:
        engine.close()
    agreement = compare(policy, requests, results)
    assert agreement.mean_abs <= 1e-3
    assert agreement.max_abs <= 1e-2
    with policy.as_reference():
        assert compare(policy, requests, results).max_abs > 0.1


def test_an_engine_that_can_keep_no_screenshot_answers_the_same(monkeypatch):
    """The caches have a bound in bytes: what left them meanwhile is made anew."""
    for bound in ("PIXEL_CACHE_BYTES", "FEATURE_CACHE_BYTES"):
        monkeypatch.setattr(transformers_engine, bound, 1)
    result = measure(TINY_AGENT, device="cpu")
    assert result.num_tokens > 50
    assert result.mean_abs <= 1e-3


def test_parity_notices_another_model(tmp_path):
    """The measure can fail: weights that differ a little are seen."""
    requests = sample_requests(0, temperature=1.0, max_tokens=8)
    engine = TransformersEngine(
        TINY_AGENT, policy_version=0, max_batch_size=4, max_context=4096, device="cpu"
    )
    results = [engine.submit(request).result(timeout=120) for request in requests]
    engine.close()
    policy = PolicyModel(TINY_AGENT, device="cpu")
    with torch.no_grad():
        for parameter in policy.network.parameters():
            parameter.mul_(1.01)
    assert compare(policy, requests, results).mean_abs > 1e-3


def test_image_tokens_carry_image_positions():
    """Without the marks of image tokens their positions are those of text, and nothing raises."""
    policy = PolicyModel(TINY_AGENT, device="cpu")
    ids = torch.tensor([1, *[policy.image_token_id] * 48, 2, 3])
    positions = policy.positions(ids, len(ids), [(1, 12, 16)])
    assert positions[0, 1:49].unique().numel() == 1  # one time
    assert positions[1, 1:49].unique().numel() == 6  # rows
    assert positions[2, 1:49].unique().numel() == 8  # columns
    assert positions[:, 49].tolist() == [9, 9, 9]  # after the longer side
