"""Do the rollout engine and the trainer agree on the log-probabilities of the same tokens?

Anything that differs between the two (positions of image tokens, the mask, the temperature, the
assistant header) is a silent bias of every update, so this is measured, by ``dart-gui doctor`` too.
"""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from dart_gui.model.policy_model import PolicyModel
from dart_gui.rollout.engines.base import EngineRequest, EngineResult
from dart_gui.rollout.engines.transformers_engine import TransformersEngine
from dart_gui.train.forward import response_logprobs
from dart_gui.train.samples import Sample
from dart_gui.types import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityResult:
    mean_abs: float  # mean |trainer - rollout| over response tokens, nats
    max_abs: float
    num_tokens: int


def measure(
    model_dir: Path,
    *,
    device: str = "auto",
    dtype: str = "float32",
    temperature: float = 1.0,
    max_tokens: int = 24,
    seed: int = 0,
) -> ParityResult:
    """Let the engine answer prompts of several lengths and numbers of images, all in flight at once,
    and score its replies with the trainer's forward pass."""
    requests = sample_requests(seed, temperature=temperature, max_tokens=max_tokens)
    engine = TransformersEngine(
        model_dir, policy_version=0, max_batch_size=4, max_context=8192, device=device, dtype=dtype
    )
    try:
        futures = [engine.submit(request) for request in requests]
        results = [future.result(timeout=600) for future in futures]
    finally:
        engine.close()
    return compare(PolicyModel(model_dir, device=device, dtype=dtype), requests, results)


def compare(
    policy: PolicyModel, requests: Sequence[EngineRequest], results: Sequence[EngineResult]
) -> ParityResult:
    images = {name: png for request in requests for name, png in request.images.items()}
    samples = [_sample(request, result) for request, result in zip(requests, results, strict=True)]
    with torch.no_grad():
        logprobs, _ = response_logprobs(policy, samples, lambda name: policy.pixels(images[name]))
    rollout = torch.tensor([x for sample in samples for x in sample.rollout_logprobs])
    difference = (logprobs.cpu() - rollout).abs()
    return ParityResult(
        mean_abs=float(difference.mean()),
        max_abs=float(difference.max()),
        num_tokens=len(rollout),
    )


def sample_requests(seed: int, *, temperature: float, max_tokens: int) -> list[EngineRequest]:
    """Conversations of 1 to 4 turns with up to 3 screenshots, and one of text alone."""
    rng = random.Random(seed)
    requests = []
    for num_turns in (1, 2, 3, 4, 1, 2):
        images = dict(_screenshot(rng) for _ in range(min(3, num_turns)))
        requests.append(_request(rng, num_turns, images, temperature, max_tokens))
    requests.append(_request(rng, 2, {}, temperature, max_tokens))
    return requests


def _request(
    rng: random.Random,
    num_turns: int,
    images: dict[str, bytes],
    temperature: float,
    max_tokens: int,
) -> EngineRequest:
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You are a helpful assistant."}]
    shown = [""] * (num_turns - len(images)) + list(images)
    for turn, name in enumerate(shown):
        content: list[dict[str, Any]] = []
        if turn == 0 or not name:
            content.append({"type": "text", "text": f"Press button {rng.randrange(100)}, please."})
        if name:
            content.append({"type": "image_url", "image_url": {"url": f"sha256:{name}"}})
        messages.append({"role": "user", "content": content})
        if turn < num_turns - 1:
            reply = f"Thought: Look.\nAction: click(start_box='({rng.randrange(99)},7)')"
            messages.append({"role": "assistant", "content": reply})
    sampling = SamplingParams(
        temperature=temperature, max_tokens=max_tokens, seed=rng.getrandbits(31)
    )
    return EngineRequest(messages=messages, images=images, sampling=sampling)


def _screenshot(rng: random.Random) -> tuple[str, bytes]:
    image = Image.new("RGB", (160, 210), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        x, y = rng.randrange(120), rng.randrange(170)
        colour = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        draw.rectangle((x, y, x + 30, y + 20), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return hashlib.sha256(buffer.getvalue()).hexdigest(), buffer.getvalue()


def _sample(request: EngineRequest, result: EngineResult) -> Sample:
    return Sample(
        trajectory_id="parity",
        prompt_ids=result.prompt_ids,
        response_ids=result.response_ids,
        rollout_logprobs=result.rollout_logprobs,
        image_hashes=result.image_hashes,
        masked_token_ids=result.masked_token_ids,
        temperature=request.sampling.temperature,
        policy_version=0,
        advantage=0.0,
        weight=1.0,
    )
