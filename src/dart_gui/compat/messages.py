"""Requests and answers of the published model service, to and from ours."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

_SPECIAL = re.compile(r"<\|[a-z_]+\|>")
_DATA_URL = re.compile(r"data:(?:image|image/png|image/\*)?;base64,")
_NAMES = ("task_id", "trace_id", "step")
_TAKEN = ("temperature", "max_tokens", "max_completion_tokens", "seed")
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
}
_EXPECTED = ("logprobs", "return_tokens_as_token_ids", "top_logprobs", "n", "stream")


def to_chat(messages: Any, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The body for ``/v1/chat/completions``, and the names of parameters that have no effect here.

    The published runner gives every attempt at a task the same seed, with which they would all be the
    same attempt: ours is drawn from its seed, its trajectory and its step.
    """
    body: dict[str, Any] = {"messages": _png_urls(messages)}
    body |= {name: parameters[name] for name in _TAKEN if name in parameters}
    if isinstance(body.get("seed"), int):
        body["seed"] = attempt_seed(body["seed"], *(str(parameters.get(name)) for name in _NAMES))
    ignored = [
        name
        for name, value in parameters.items()
        if name not in (*_NAMES, *_TAKEN, *_EXPECTED)
        and value is not None
        and value not in _NEUTRAL.get(name, ())
    ]
    return body | {"logprobs": True, "return_token_ids": True}, ignored


def attempt_seed(seed: int, task_id: str, trace_id: str, step: str) -> int:
    text = f"{seed}\n{task_id}\n{trace_id}\n{step}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def to_published(body: dict[str, Any], *, ckpt_path: str, ignored: list[str]) -> dict[str, Any]:
    """A completion as vLLM gives it: the checkpoint's path as the model's name, and special tokens
    left out of the text, which the published runner puts back itself."""
    choice = body["choices"][0]
    message = choice["message"] | {"content": _SPECIAL.sub("", choice["message"]["content"])}
    result = body | {"model": ckpt_path, "choices": [choice | {"message": message}]}
    return result | ({"ignored_parameters": ignored} if ignored else {})


def _png_urls(messages: Any) -> Any:
    """``data:image;base64,`` and the like name their kind: a PNG, which is checked later."""
    if not isinstance(messages, list):
        return messages
    return [
        message | {"content": [_png_url(part) for part in message["content"]]}
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _png_url(part: Any) -> Any:
    image = part.get("image_url") if isinstance(part, dict) else None
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str) or not (match := _DATA_URL.match(url)):
        return part
    return part | {"image_url": {"url": f"data:image/png;base64,{url[match.end() :]}"}}
