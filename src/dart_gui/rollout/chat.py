"""The OpenAI chat format: requests checked and reduced to what the trainer models, answers with the
exact token ids (fields as in vLLM's ``return_token_ids``) and the facts that a step stores.

Validation is by hand: pydantic models of messages cost more CPU than the whole HTTP exchange.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dart_gui.rollout.engines.base import EngineResult
from dart_gui.rollout.httpd import bad_request
from dart_gui.rollout.images import check_png, decode_data_url, image_hash, is_image_hash
from dart_gui.types import SamplingParams

_ROLES = ("system", "user", "assistant")
_HONOURED = frozenset({"messages", "temperature", "max_tokens", "max_completion_tokens", "seed"})
_HONOURED |= {"logprobs", "return_token_ids"}
_WITHOUT_EFFECT = frozenset({"model", "user", "metadata", "store"})
# Parameters that change the distribution, with the values at which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "stop": ([],),
    "stop_token_ids": ([],),
    "stream": (False,),
    "stream_options": (),
    "tools": ([],),
    "response_format": ({"type": "text"},),
}
MIN_TEMPERATURE = 0.01  # below it, logits divided by it overflow; 0 is greedy


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    messages: list[dict[str, Any]]  # images as "sha256:<hex>" URLs only
    image_hashes: list[str]  # of the messages, in order; may repeat
    sampling: SamplingParams
    model: str
    logprobs: bool
    return_token_ids: bool

    def to_json(self) -> dict[str, Any]:
        """For the worker. Not ``dataclasses.asdict``, which copies every message deeply."""
        tree: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        return tree | {"sampling": asdict(self.sampling)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> ChatRequest:
        return cls(**{**tree, "sampling": SamplingParams(**tree["sampling"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatDefaults:
    model: str
    temperature: float
    max_tokens: int
    max_context: int
    draw_seed: Callable[[], int]


def parse_request(
    body: Mapping[str, Any], defaults: ChatDefaults
) -> tuple[ChatRequest, dict[str, bytes]]:
    """The request, and the screenshots that came inside it as data URLs, by hash.

    Raises:
        ApiError: 400, naming the field and what it may be.
    """
    _refuse_unmodelled(body)
    if not isinstance(body.get("model"), str | None):
        raise bad_request(f"model = {body['model']!r:.40} must be text, or left out")
    messages, hashes, inline = _messages(body.get("messages"))
    request = ChatRequest(
        messages=messages,
        image_hashes=hashes,
        sampling=_sampling(body, defaults),
        model=defaults.model,
        logprobs=_boolean(body, "logprobs"),
        return_token_ids=_boolean(body, "return_token_ids"),
    )
    return request, inline


def _refuse_unmodelled(body: Mapping[str, Any]) -> None:
    for key, value in body.items():
        if key in _HONOURED or key in _WITHOUT_EFFECT or value is None:
            continue
        if key not in _NEUTRAL:
            raise bad_request(f"unknown parameter {key!r:.60}: leave it out")
        if value not in _NEUTRAL[key]:
            raise bad_request(
                f"{key} = {value!r:.60} is refused: the service samples at a temperature and "
                "nothing else, because the trainer models no other distribution; leave it out"
            )


def _sampling(body: Mapping[str, Any], defaults: ChatDefaults) -> SamplingParams:
    temperature = body.get("temperature")
    temperature = defaults.temperature if temperature is None else temperature
    if not _is_number(temperature) or not (temperature == 0 or temperature >= MIN_TEMPERATURE):
        raise bad_request(
            f"temperature = {temperature!r:.40} must be 0 (greedy) or at least {MIN_TEMPERATURE}"
        )
    max_tokens = body.get("max_completion_tokens")
    max_tokens = body.get("max_tokens") if max_tokens is None else max_tokens
    max_tokens = defaults.max_tokens if max_tokens is None else max_tokens
    seed = body.get("seed")
    seed = defaults.draw_seed() if seed is None else seed
    return SamplingParams(
        temperature=float(temperature),
        max_tokens=_integer("max_tokens", max_tokens, 1, defaults.max_context),
        seed=_integer("seed", seed, 0, 2**63 - 1),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the range of floats
        return False


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise bad_request(f"{name} = {value!r:.40} must be an integer from {low} to {high}")
    return value


def _boolean(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_request(f"{name} = {value!r:.40} must be true or false")
    return bool(value)


def _messages(value: Any) -> tuple[list[dict[str, Any]], list[str], dict[str, bytes]]:
    if not isinstance(value, list) or not value:
        raise bad_request("messages must be a list of at least one message")
    hashes: list[str] = []
    inline: dict[str, bytes] = {}
    messages = []
    for index, message in enumerate(value):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise bad_request(f"{where} must be an object with a role of {', '.join(_ROLES)}")
        content: Any = message.get("content")
        if isinstance(content, list):
            content = [_part(part, f"{where}.content", hashes, inline) for part in content]
        elif not _is_text(content):
            raise bad_request(f"{where}.content must be valid text or a list of parts")
        messages.append({"role": message["role"], "content": content})
    if messages[-1]["role"] != "user":
        raise bad_request("the last message must be the user's")
    return messages, hashes, inline


def _is_text(value: Any) -> bool:
    """JSON can carry half of a surrogate pair, which no tokenizer takes."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _part(part: Any, where: str, hashes: list[str], inline: dict[str, bytes]) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and _is_text(part.get("text")):
        return {"type": "text", "text": part["text"]}
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if isinstance(url, str):
            key = _image_key(url, where, inline)
            hashes.append(key)
            return {"type": "image_url", "image_url": {"url": f"sha256:{key}"}}
    raise bad_request(f'{where}: a part is {{"type": "text", ...}} or {{"type": "image_url", ...}}')


def _image_key(url: str, where: str, inline: dict[str, bytes]) -> str:
    if url.startswith("sha256:") and is_image_hash(url[7:]):
        return url[7:]
    if not url.startswith("data:"):
        raise bad_request(
            f"{where}: the image URL {url[:60]!r} is neither 'sha256:<64 hex digits>' of an image "
            "that was put, nor a data URL; the service fetches nothing"
        )
    try:
        png = decode_data_url(url)
        check_png(png)
    except ValueError as error:
        raise bad_request(f"{where}: {error}") from None
    key = image_hash(png)
    inline[key] = png
    return key


# --- answers -------------------------------------------------------------------------------


def completion_body(
    result: EngineResult, request: ChatRequest, *, policy_version: int, worker_id: str, now: float
) -> dict[str, Any]:
    """The answer as JSON. Log-probabilities name their token by id, which is exact."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": result.text},
        "finish_reason": result.finish_reason,
        "logprobs": None,
    }
    if request.logprobs:
        pairs = zip(result.response_ids, result.rollout_logprobs, strict=True)
        content: list[dict[str, Any]] = [
            {"token": f"token_id:{token}", "logprob": logprob, "bytes": None, "top_logprobs": []}
            for token, logprob in pairs
        ]
        choice["logprobs"] = {"content": content}
    body: dict[str, Any] = {
        "id": f"chatcmpl-{worker_id}-{request.sampling.seed:x}-{int(now * 1e6):x}",
        "object": "chat.completion",
        "created": int(now),
        "model": request.model,
        "choices": [choice],
        "usage": _usage(len(result.prompt_ids), len(result.response_ids)),
        "policy_version": policy_version,
        "worker_id": worker_id,
        "image_hashes": result.image_hashes,
        "entropies": result.entropies,
        "masked_token_ids": result.masked_token_ids,
        "sampling": asdict(request.sampling),
    }
    if request.return_token_ids:
        body["prompt_token_ids"] = result.prompt_ids
        choice["token_ids"] = result.response_ids
    return body


def _usage(num_prompt: int, num_response: int) -> dict[str, int]:
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_response,
        "total_tokens": num_prompt + num_response,
    }
