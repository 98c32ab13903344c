"""The fixed prompt and image by whose answer the weights of a vLLM server are known, and the checksum
of its parameters."""

from __future__ import annotations

import hashlib
import io
import secrets

from PIL import Image

from dart_gui.rollout.engines.base import EngineRequest
from dart_gui.rollout.engines.vllm_api import ServerFailedError, VllmApi
from dart_gui.rollout.engines.vllm_chat import ChatTranslator
from dart_gui.rollout.engines.vllm_weights import Served
from dart_gui.rollout.fingerprint import Fingerprint
from dart_gui.rollout.images import image_hash
from dart_gui.types import SamplingParams

PROBE_TOKENS = 8


async def take_fingerprint(api: VllmApi, translator: ChatTranslator, served: Served) -> Fingerprint:
    """Of ``served``, which the server is to have by now. An adapter is no parameter of the model: its
    files stand for it in the checksum, and what it does shows in the log-probabilities.

    Raises:
        ServerGoneError, ServerFailedError: there is no sane answer.
    """
    checksums = await api.checksums()
    if served.adapter:
        checksums["adapter"] = served.digest
    request = _request(temperature=0.0, max_tokens=PROBE_TOKENS)
    # a salt of its own: nothing of an earlier probe may stand in for the weights of now
    body = translator.body(request, f"probe-{secrets.token_hex(8)}", served.model)
    result = translator.result(await api.chat(body), request)
    text = "\n".join(f"{name} {checksums[name]}" for name in sorted(checksums))
    return Fingerprint(
        checksum=hashlib.sha256(text.encode()).hexdigest(),
        ids=tuple(result.response_ids),
        logprobs=tuple(result.rollout_logprobs),
    )


async def uses_processed_logprobs(api: VllmApi, translator: ChatTranslator) -> bool:
    """Whether log-probabilities change with the temperature, as those of the sampled distribution
    do. The same first token is drawn greedily from two requests that differ in nothing else."""
    hot, cold = [await _alternatives(api, translator, value) for value in (1.0, 2.0)]
    common = hot.keys() & cold.keys()
    if not common:
        raise ServerFailedError("two probes of one prompt have no token in common")
    return any(abs(hot[token] - cold[token]) > 1e-3 for token in common)


async def _alternatives(
    api: VllmApi, translator: ChatTranslator, temperature: float
) -> dict[str, float]:
    body = translator.body(_request(temperature=temperature, max_tokens=1), "probe")
    answer = await api.chat(body)
    try:
        (item,) = answer["choices"][0]["logprobs"]["content"]
        return {other["token"]: float(other["logprob"]) for other in item["top_logprobs"]}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ServerFailedError(
            f"no log-probabilities in the answer to a probe: {error!r}"
        ) from None


def _request(*, temperature: float, max_tokens: int) -> EngineRequest:
    png = _probe_png()
    key = image_hash(png)
    parts = [
        {"type": "text", "text": "What is to be seen here? Click the button."},
        {"type": "image_url", "image_url": {"url": f"sha256:{key}"}},
    ]
    return EngineRequest(
        messages=[{"role": "user", "content": parts}],
        images={key: png},
        sampling=SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=0),
    )


def _probe_png() -> bytes:
    image = Image.linear_gradient("L").resize((112, 84)).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()
