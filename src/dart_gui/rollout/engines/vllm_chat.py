"""Requests and answers of vLLM's chat route, translated exactly."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dart_gui.errors import PolicyError
from dart_gui.model.folder import TokenFacts
from dart_gui.rollout.engines.base import EngineRequest, EngineResult
from dart_gui.rollout.engines.vllm_api import ServerFailedError
from dart_gui.rollout.images import check_png

_URL_PREFIX = "sha256:"
# vLLM's lowest bias. exp(-100) is 0 next to any other probability in float32.
_MASK_BIAS = -100.0
_LOGPROB_SLACK = 1e-4  # rounding may lift a certain token above 0


class ChatTranslator:
    """For one model folder; ``top_logprobs`` alternatives per token are asked for."""

    def __init__(self, facts: TokenFacts, *, model: str, top_logprobs: int) -> None:
        self._facts = facts
        self._fixed = {
            "model": model,
            # the whole distribution, whatever the server's defaults are
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "logit_bias": {str(token): _MASK_BIAS for token in facts.masked_token_ids},
            "stop_token_ids": sorted(facts.eos_ids),
            "skip_special_tokens": False,
            "logprobs": True,
            "top_logprobs": top_logprobs,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }

    def body(self, request: EngineRequest, salt: str, model: str = "") -> dict[str, Any]:
        """``salt`` names the weights: what any cache keeps is found again under the same salt only,
        and an image by its content and the salt. ``model`` is an adapter, where one is to answer.

        Raises:
            PolicyError: an image did not come with the request or is not a PNG.
        """
        return self._fixed | {
            "messages": [_message(message, request.images, salt) for message in request.messages],
            "temperature": request.sampling.temperature,
            "max_tokens": request.sampling.max_tokens,
            "seed": request.sampling.seed,
            "cache_salt": salt,
            "model": model or self._fixed["model"],
        }

    def result(self, body: Mapping[str, Any], request: EngineRequest) -> EngineResult:
        """Raises:
        ServerFailedError: the answer is not one to this request.
        """
        try:
            return self._result(body, request)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ServerFailedError(f"not a completion of vLLM: {error!r}") from None

    def _result(self, body: Mapping[str, Any], request: EngineRequest) -> EngineResult:
        choice = body["choices"][0]
        response_ids = _ids(choice["token_ids"])
        content = choice["logprobs"]["content"]
        named = [int(item["token"].removeprefix("token_id:")) for item in content]
        if named != response_ids or not response_ids:
            raise ValueError(f"ids {response_ids[:8]} came with log-probabilities of {named[:8]}")
        reason = choice["finish_reason"]
        if reason not in ("stop", "length"):
            raise ValueError(f"finish_reason = {reason!r}")
        return EngineResult(
            text=str(choice["message"]["content"] or ""),
            prompt_ids=_ids(body["prompt_token_ids"]),
            response_ids=response_ids,
            rollout_logprobs=[_logprob(item["logprob"]) for item in content],
            entropies=[_entropy(item) for item in content],
            image_hashes=image_hashes(request.messages),
            finish_reason=reason,
            masked_token_ids=self._facts.masked_token_ids,
        )


def image_hashes(messages: Iterable[Mapping[str, Any]]) -> list[str]:
    """The hashes of the images that ``messages`` name, in order."""
    return [
        part["image_url"]["url"].removeprefix(_URL_PREFIX)
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image_url"
    ]


def entropy_estimate(logprobs: Sequence[float]) -> float:
    """A lower bound of the entropy (nats) of a distribution whose listed outcomes have ``logprobs``:
    the rest of the probability counts as one outcome. Exact where nothing is left over.

    >>> round(entropy_estimate([math.log(0.5), math.log(0.5)]), 4)
    0.6931
    """
    probabilities = [math.exp(value) for value in logprobs]
    rest = 1.0 - math.fsum(probabilities)
    terms = [*probabilities, rest] if rest > 0 else probabilities
    return max(0.0, -math.fsum(p * math.log(p) for p in terms if p > 0))


def _message(message: Mapping[str, Any], images: Mapping[str, bytes], salt: str) -> dict[str, Any]:
    content = message["content"]
    if not isinstance(content, str):
        content = [_part(part, images, salt) for part in content]
    return {"role": message["role"], "content": content}


def _part(part: dict[str, Any], images: Mapping[str, bytes], salt: str) -> dict[str, Any]:
    if part["type"] != "image_url":
        return part
    url = part["image_url"]["url"]
    key = url.removeprefix(_URL_PREFIX)
    try:
        png = images[key]
        check_png(png)
    except KeyError:
        raise PolicyError(f"the prompt names the image {url}, which did not come with it") from None
    except ValueError as error:
        raise PolicyError(f"the image {url} is {error}") from None
    data = base64.b64encode(png).decode("ascii")
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{data}"},
        "uuid": f"{key}@{salt}",
    }


def _ids(value: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise TypeError(f"expected token ids, got {value!r:.80}")
    return value


def _logprob(value: Any) -> float:
    logprob = float(value)
    if not -1e6 < logprob <= _LOGPROB_SLACK:
        raise ValueError(f"{logprob} is not a log-probability")
    return min(logprob, 0.0)


def _entropy(item: Mapping[str, Any]) -> float:
    listed = {alternative["token"]: alternative["logprob"] for alternative in item["top_logprobs"]}
    return entropy_estimate(list((listed | {item["token"]: item["logprob"]}).values()))
