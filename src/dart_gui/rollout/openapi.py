"""The OpenAPI document of the rollout service, at ``GET /openapi.json``.

Written by hand, as the validation is; a test fuzzes the service against it, so the two cannot drift
apart. It is what a client may rely on: the service also takes what changes nothing (``"top_p": 1``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dart_gui import __version__
from dart_gui.rollout.states import WorkerState

Schema = dict[str, Any]

MAX_VERSION = 2**53 - 1  # the largest integer that every JSON parser reads exactly
MAX_PATH = 4095  # bytes, as the kernel has it
_HASH = "^[0-9a-f]{64}$"


def _object(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }


def _nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Schema, **limits: int) -> Schema:
    return {"type": "array", "items": items, **limits}


_STRING: Schema = {"type": "string"}
_INTEGER: Schema = {"type": "integer"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}
_VERSION: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_VERSION}

_TEXT_PART = _object({"type": {"const": "text"}, "text": _STRING})
_IMAGE_PART = _object(
    {
        "type": {"const": "image_url"},
        "image_url": _object(
            {
                "url": {
                    "type": "string",
                    "description": "sha256:<64 hex digits> of an image that was put, or a data URL",
                    "pattern": "^(sha256:[0-9a-f]{64}$|data:image/png;base64,)",
                }
            }
        ),
    }
)
_MESSAGE = _object(
    {
        "role": {"enum": ["system", "user", "assistant"]},
        "content": {"anyOf": [_STRING, _list({"anyOf": [_TEXT_PART, _IMAGE_PART]})]},
    }
)
_WEIGHTS = _object(
    {"policy_version": _VERSION, "path": {"type": "string", "minLength": 1, "maxLength": MAX_PATH}}
)
_ERROR = _object({"error": _object({"message": _STRING, "type": _STRING, "code": _INTEGER})})
_CHOICE = _object(
    {
        "index": _INTEGER,
        "message": _object({"role": {"const": "assistant"}, "content": _STRING}),
        "finish_reason": {"enum": ["stop", "length"]},
        "logprobs": _nullable(
            _object({"content": _list(_object({"token": _STRING, "logprob": _NUMBER}))})
        ),
    },
    {"token_ids": _list(_COUNT)},
)
_SAMPLING = _object({"temperature": _NUMBER, "max_tokens": _COUNT, "seed": _COUNT})
_COMPLETION = _object(
    {
        "id": _STRING,
        "object": {"const": "chat.completion"},
        "created": _INTEGER,
        "model": _STRING,
        "choices": _list(_CHOICE, minItems=1, maxItems=1),
        "usage": _object(
            {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT}
        ),
        "policy_version": _VERSION,
        "worker_id": _STRING,
        "image_hashes": _list({"type": "string", "pattern": _HASH}),
        "entropies": _list(_NUMBER),
        "masked_token_ids": _list(_COUNT),
        "sampling": _SAMPLING,
    },
    {"prompt_token_ids": _list(_COUNT)},
)
_WORKER = _object(
    {
        "worker_id": _STRING,
        "state": {"enum": [state.value for state in WorkerState]},
        "policy_version": _VERSION,
        "num_in_flight": _COUNT,
        "num_completed": _COUNT,
        "busy_s": _NUMBER,
        "restarts": _COUNT,
    }
)
_STATUS = _object(
    {
        "workers": _list(_WORKER),
        "desired_version": _VERSION,
        "queue_size": _COUNT,
        "update_error": _nullable(_STRING),
        "num_images": _COUNT,
        "image_bytes": _COUNT,
        "model": _STRING,
    }
)


def _chat(*, min_temperature: float, max_context: int) -> Schema:
    temperature = {"anyOf": [{"const": 0}, {"type": "number", "minimum": min_temperature}]}
    tokens = _nullable({"type": "integer", "minimum": 1, "maximum": max_context})
    optional: dict[str, Schema] = {
        "model": _nullable(_STRING),
        "temperature": _nullable(temperature),
        "max_tokens": tokens,
        "max_completion_tokens": tokens,
        "seed": _nullable({"type": "integer", "minimum": 0, "maximum": 2**63 - 1}),
        "logprobs": _nullable({"type": "boolean"}),
        "return_token_ids": _nullable({"type": "boolean"}),
    }
    return _object({"messages": _list(_MESSAGE, minItems=1)}, optional)


def _json(schema: Schema) -> Schema:
    return {"content": {"application/json": {"schema": schema}}}


def _operation(
    name: str, summary: str, answer: Schema, *, errors: str, body: Schema | None = None
) -> Schema:
    """``errors`` are the statuses, but for 401, with which it may answer."""
    statuses = ["401", *errors.split()]
    operation: Schema = {
        "operationId": name,
        "summary": summary,
        "responses": {
            "200": {"description": "done", **_json(answer)},
            **{status: {"description": "refused", **_json(_ERROR)} for status in statuses},
        },
    }
    if body is not None:
        operation["requestBody"] = {"required": True, **body}
    return operation


def document(*, min_temperature: float, max_context: int) -> Schema:
    """OpenAPI 3.1, with the limits of this service."""
    chat = _chat(min_temperature=min_temperature, max_context=max_context)
    png = {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
    key = {
        "name": "key",
        "in": "path",
        "required": True,
        "description": "sha256 of the PNG",
        "schema": {"type": "string", "pattern": _HASH},
    }
    put = _operation(
        "put_image",
        "Keep a screenshot, for prompts to name",
        _object({"sha256": _STRING, "num_bytes": _COUNT}),
        errors="400 404 413",
        body=png,
    )
    complete = _operation(
        "complete",
        "One reply, made whole by one worker at one policy version",
        _COMPLETION,
        errors="400 404 413 502 503 504",
        body=_json(chat),
    )
    publish = _operation(
        "publish",
        "Set the weights to serve; the workers take them one by one",
        _object({"accepted": {"type": "boolean"}, "desired_version": _VERSION}),
        errors="400 413",
        body=_json(_WEIGHTS),
    )
    models = _object({"object": _STRING, "data": _list(_object({"id": _STRING}))})
    health = _object({"status": _STRING})
    return {
        "openapi": "3.1.0",
        "info": {"title": "DART-GUI rollout service", "version": __version__},
        "components": {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
        "security": [{"bearer": []}],
        "paths": {
            "/images/{key}": {"parameters": [key], "put": put},
            "/v1/chat/completions": {"post": complete},
            "/weights": {"post": publish},
            "/v1/models": {"get": _operation("models", "The model", models, errors="")},
            "/status": {"get": _operation("status", "Workers and queue", _STATUS, errors="")},
            "/health": {"get": _operation("health", "Is any worker up", health, errors="503")},
        },
    }
