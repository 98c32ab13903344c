"""The calls to one vLLM server: completions, and the routes for weight updates.

Every call has a time limit: a server whose engine has died may keep its connections open and never
answer.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import aiohttp

from dart_gui.errors import ContextLengthError, DataError, PolicyError
from dart_gui.rollout.engines.base import EngineLoad

CONTROL_TIMEOUT_S = 60.0
RELOAD_TIMEOUT_S = 600.0
_HEALTH_TIMEOUT_S = 5.0
_LOAD_ADAPTER = "/v1/load_lora_adapter"
_SAMPLE = re.compile(r"^vllm:(\w+)(?:\{[^}]*\})? ([0-9.eE+-]+)$", re.MULTILINE)


class ServerGoneError(PolicyError):
    """No answer: the server or its engine is dead, or on its way up."""


class ServerFailedError(PolicyError):
    """An answer of 5xx, or one that is no answer to what was asked."""


class VllmApi:
    """To be made and used on one event loop. ``url`` is that of the server, or ``unix:<path>``."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        scheme, _, path = url.partition(":")
        is_unix = scheme == "unix"
        self._base = "http://vllm" if is_unix else url.rstrip("/")
        connector = (
            aiohttp.UnixConnector(path=path, limit=0) if is_unix else aiohttp.TCPConnector(limit=0)
        )
        self._http = aiohttp.ClientSession(connector=connector)
        self._timeout_s = timeout_s

    async def close(self) -> None:
        await self._http.close()

    async def healthy(self) -> bool:
        try:
            status, _ = await self._call("GET", "/health", None, _HEALTH_TIMEOUT_S)
        except ServerGoneError:
            return False
        return status == 200

    async def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body of a completion.

        Raises:
            ContextLengthError: the prompt does not fit.
            PolicyError: the server refuses the request.
            ServerGoneError, ServerFailedError: another try may succeed.
        """
        status, content = await self._call("POST", "/v1/chat/completions", body, self._timeout_s)
        if status == 200:
            return _parse(content)
        message = _message(content)
        if status >= 500:
            raise ServerFailedError(f"vLLM answered {status}: {message}")
        if "maximum context length" in message or "maximum model length" in message:
            raise ContextLengthError(message)
        raise PolicyError(f"vLLM refuses the request ({status}): {message}")

    async def model(self) -> dict[str, Any]:
        """The first served model, as /v1/models has it."""
        return (await self.models())[0]

    async def models(self) -> list[dict[str, Any]]:
        """The served model, then the loaded adapters, oldest first."""
        body = _parse(await self._checked("GET", "/v1/models", None, CONTROL_TIMEOUT_S))
        return [dict(model) for model in body["data"]]

    async def takes_adapters(self) -> bool:
        """Whether the server has the routes for them: a request that names none is refused by it, and
        unknown without it."""
        nothing = {"lora_name": "", "lora_path": ""}
        status, _ = await self._call("POST", _LOAD_ADAPTER, nothing, CONTROL_TIMEOUT_S)
        return status != 404

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Serve the adapter in ``folder`` as the model ``name``, which must not be in use.

        Raises:
            DataError: the server did not take it; what it has stays.
            ServerGoneError: it died of it.
        """
        body = {"lora_name": name, "lora_path": str(folder)}
        await self._control(_LOAD_ADAPTER, body, timeout_s=RELOAD_TIMEOUT_S)

    async def unload_adapter(self, name: str) -> None:
        """Raises ``DataError`` where there is none of this name."""
        await self._control("/v1/unload_lora_adapter", {"lora_name": name})

    async def weight_label(self) -> str:
        body = _parse(await self._checked("GET", "/weight_info", None, CONTROL_TIMEOUT_S))
        return str(body["weight_version"])

    async def load(self) -> EngineLoad:
        content = await self._checked("GET", "/metrics", None, _HEALTH_TIMEOUT_S)
        return parse_load(content.decode(errors="replace"))

    async def checksums(self) -> dict[str, str]:
        """A digest of each parameter. On a CPU the packed linear layers count as empty."""
        body = {"action": "checksum"}
        answer = await self._checked("POST", "/weight_checker", body, RELOAD_TIMEOUT_S)
        return dict(_parse(answer)["checksums"])

    async def reload(self, folder: Path, label: str) -> None:
        """Take the weights of ``folder`` in place. Nothing runs in between: a reload without a
        pause kills the engine at the next known image, whose cached features only a pause clears.
        What still runs, although its connection is closed, is ended by the pause.

        Raises:
            DataError: the server did not take them and now holds a mixture.
            ServerGoneError: it died of them.
        """
        await self._control("/pause?mode=abort")
        try:
            await self._control(
                "/collective_rpc",
                {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}},
                timeout_s=RELOAD_TIMEOUT_S,
            )
            await self._control("/update_weight_version", {"new_version": label})
        finally:
            await self._control("/resume")

    async def _control(
        self, path: str, body: Any = None, *, timeout_s: float = CONTROL_TIMEOUT_S
    ) -> None:
        try:
            await self._checked("POST", path, body, timeout_s)
        except ServerFailedError as error:
            raise DataError(f"{path}: {error}") from None

    async def _checked(self, method: str, path: str, body: Any, timeout_s: float) -> bytes:
        status, content = await self._call(method, path, body, timeout_s)
        if status != 200:
            raise ServerFailedError(f"vLLM answered {path} with {status}: {_message(content)}")
        return content

    async def _call(self, method: str, path: str, body: Any, timeout_s: float) -> tuple[int, bytes]:
        arguments = {} if body is None else {"json": body}
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.request(method, self._base + path, **arguments) as response,
            ):
                return response.status, await response.read()
        except TimeoutError:
            raise ServerGoneError(f"vLLM: no answer to {path} within {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ServerGoneError(f"vLLM: {path}: {error or type(error).__name__}") from None


def parse_load(metrics: str) -> EngineLoad:
    """From the Prometheus text of a server, summed over its engines (the fullest KV cache counts)."""
    found: dict[str, list[float]] = {}
    for match in _SAMPLE.finditer(metrics):
        found.setdefault(match[1], []).append(float(match[2]))
    return EngineLoad(
        kv_pressure=max(found.get("kv_cache_usage_perc", [0.0])),
        prefix_queries=int(sum(found.get("prefix_cache_queries_total", []))),
        prefix_hits=int(sum(found.get("prefix_cache_hits_total", []))),
    )


def _parse(content: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError):
        raise ServerFailedError(f"vLLM answered something else: {content[:200]!r}") from None


def _message(content: bytes) -> str:
    try:
        error = json.loads(content)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:500]
    except (ValueError, KeyError, TypeError):
        return content[:300].decode(errors="replace")
