"""Any OpenAI-compatible server as a policy: what it is asked and answers is text and pictures alone.

It needs none of our service's extensions, so its completions have no token ids: they can be scored,
not trained on.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp

from dart_gui.errors import AuthError, ConfigError, ContextLengthError, PolicyError
from dart_gui.rollout.client import whole_characters
from dart_gui.runner.clock import Clock
from dart_gui.types import Completion, SamplingParams

_FIRST_WAIT_S = 1.0
_MAX_WAIT_S = 60.0
_MAX_SHOWN = 300  # characters of a server's own words
_MAX_NAMED = 8  # models that an error names
_TOO_LONG = ("maximum context length", "context length", "context_length", "too many tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the model is and how it is asked. ``key`` is in no message and no repr."""

    base_url: str  # as checked_base_url() gives it
    model: str
    key: str = field(default="", repr=False)
    key_env: str = ""  # the variable that it came from, for messages
    timeout_s: float = 300.0  # of one completion, repetitions included
    send_seed: bool = True
    max_tokens_name: str = "max_tokens"

    def __str__(self) -> str:
        return f"{self.model} at {self.base_url}"


def checked_base_url(text: str) -> str:
    """The URL under which ``/chat/completions`` is; ``/v1`` where none is given.

    >>> checked_base_url("http://127.0.0.1:8000/")
    'http://127.0.0.1:8000/v1'

    Raises:
        ConfigError: it is not http(s), or holds what may be a secret.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"the base URL {text!r} is not one: expected the address of an OpenAI-compatible server, "
            "such as http://127.0.0.1:8000/v1"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "the base URL may hold no user name, password, query or fragment, as it is written into "
            "the results: give the key in an environment variable"
        )
    url = text.rstrip("/").removesuffix("/chat/completions")
    return url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/v1"


class OpenAIPolicy:
    """An async context manager; a ``Policy``.

    429, 5xx and a connection that breaks are tried again until ``timeout_s``, as late as
    ``Retry-After`` says, else after 1, 2, 4, ... seconds, spread at random.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        clock: Clock,
        spread: Callable[[], float] = random.random,
    ) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._spread = spread
        self._session: aiohttp.ClientSession | None = None
        self.num_retries = 0

    async def __aenter__(self) -> Self:
        key = self._endpoint.key
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            connector=aiohttp.TCPConnector(limit=0),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def check(self, png: bytes, sampling: SamplingParams) -> None:
        """Ask for one short answer about a picture, with the settings of every later request. A
        server that is not there is not waited for.

        Raises:
            AuthError: the key is refused.
            ConfigError: there is no such server or model, or it refuses pictures or a setting.
            PolicyError: the server cannot answer now.
        """
        body = self._body([{"role": "user", "content": [_text("Say ok."), _image(png)]}], sampling)
        try:
            answer = await self._post(body, self._endpoint.timeout_s)
        except _UnreachableError as error:
            raise ConfigError(
                f"there is no server at {self._endpoint.base_url}: {error}. Check the base URL."
            ) from None
        if _is_passing(answer.status):
            answer = await self._post_patiently(body)
        if answer.status == 404:
            raise ConfigError(await self._not_found(answer))
        if answer.status in (400, 413, 415, 422):
            raise ConfigError(
                f"{self._endpoint} refuses a picture with these settings "
                f"(HTTP {answer.status}): {answer.message}"
            )
        self._checked(answer)

    async def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Mapping[str, bytes],
        sampling: SamplingParams,
        *,
        trajectory_id: str,
    ) -> Completion:
        """One answer, with no token ids. ``images`` holds the PNG of each "sha256:<hex>" of the
        messages.

        Raises:
            ContextLengthError: the prompt does not fit the model's context.
            PolicyError: no answer in time, or a refusal.
            AuthError: the key is refused.
            ConfigError: there is no such model.
        """
        body = self._body([_with_data_urls(message, images) for message in messages], sampling)
        answer = await self._post_patiently(body)
        text, finish_reason = _reply(self._checked(answer))
        return Completion(
            text=text,
            prompt_ids=[],
            response_ids=[],
            rollout_logprobs=[],
            entropies=[],
            image_hashes=list(images),
            finish_reason="length" if finish_reason == "length" else "stop",
            policy_version=0,
            worker_id=self._endpoint.model,
            sampling=sampling,
            foreign=True,
        )

    def _body(self, messages: Sequence[Any], sampling: SamplingParams) -> dict[str, Any]:
        body = {
            "model": self._endpoint.model,
            "messages": messages,
            "temperature": sampling.temperature,
            self._endpoint.max_tokens_name: sampling.max_tokens,
        }
        return body | ({"seed": sampling.seed} if self._endpoint.send_seed else {})

    async def _post_patiently(self, body: Mapping[str, Any]) -> _Answer:
        deadline = self._clock.monotonic() + self._endpoint.timeout_s
        wait_s = _FIRST_WAIT_S
        while True:
            try:
                answer = await self._post(body, deadline - self._clock.monotonic())
                if not _is_passing(answer.status):
                    return answer
                said, asked_s = f"HTTP {answer.status}: {answer.message}", answer.retry_after_s
            except _UnreachableError as error:
                said, asked_s = str(error), None
            pause_s = asked_s if asked_s is not None else wait_s * (0.5 + self._spread())
            if self._clock.monotonic() + pause_s > deadline:
                raise PolicyError(
                    f"{self._endpoint} gave no answer within {self._endpoint.timeout_s:g} s; last: "
                    f"{said}"
                )
            self.num_retries += 1
            await self._clock.sleep(pause_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)

    async def _post(self, body: Mapping[str, Any], timeout_s: float) -> _Answer:
        return await self._call("POST", "/chat/completions", timeout_s, json=body)

    async def _call(self, method: str, path: str, timeout_s: float, **arguments: Any) -> _Answer:
        if self._session is None:
            raise PolicyError("the client is used outside its `async with`")
        url = f"{self._endpoint.base_url}{path}"
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, url, timeout=timeout, **arguments) as response:
                text = await response.text(errors="replace")
                tree = await _json(response)
                asked = response.headers.get("Retry-After")
        except TimeoutError:
            raise _UnreachableError(f"no answer in {timeout_s:.0f} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _UnreachableError(self._redacted(str(error) or type(error).__name__)) from None
        return _Answer(
            status=response.status,
            body=tree,
            message=self._redacted(_message(tree, text)),
            retry_after_s=_seconds(asked, self._clock.now()),
        )

    def _redacted(self, text: str) -> str:
        key = self._endpoint.key
        line = " ".join(text.split())
        return (line.replace(key, "***") if key else line)[:_MAX_SHOWN]

    def _checked(self, answer: _Answer) -> Mapping[str, Any]:
        """The body of a good answer."""
        if answer.status == 200:
            return answer.body
        said = f"HTTP {answer.status}: {answer.message}"
        if answer.status in (401, 403):
            where = self._endpoint.key_env
            raise AuthError(
                f"{self._endpoint} refuses the key ({said}). "
                + (
                    f"Check the environment variable {where}."
                    if self._endpoint.key
                    else f"None was sent, as the environment variable {where} is empty: set it."
                )
            )
        if answer.status == 404:
            raise ConfigError(f"{self._endpoint} is gone ({said})")
        if answer.status in (400, 413) and any(
            sign in f"{answer.code} {answer.message}".lower() for sign in _TOO_LONG
        ):
            raise ContextLengthError(answer.message)
        raise PolicyError(f"{self._endpoint} answered {said}")

    async def _not_found(self, answer: _Answer) -> str:
        """What to say of a 404: the names of the models, where the server tells them."""
        try:
            listed = await self._call("GET", "/models", self._endpoint.timeout_s)
        except _UnreachableError:
            listed = answer
        names = _model_names(listed.body) if listed.status == 200 else []
        url, model = self._endpoint.base_url, self._endpoint.model
        if names and model not in names:
            known = ", ".join(names[:_MAX_NAMED]) + (", ..." if len(names) > _MAX_NAMED else "")
            return f"{url} has no model {model!r}; it has: {known}"
        return (
            f"{url} has no model {model!r}, or is not an OpenAI-compatible server: POST "
            f"/chat/completions answered 404 ({answer.message}). Check the base URL, which mostly ends "
            "in /v1, and the model's name."
        )


class _UnreachableError(Exception):
    """No answer came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    status: int
    body: Mapping[str, Any]
    message: str  # what is wrong, in the server's words
    retry_after_s: float | None

    @property
    def code(self) -> str:
        error = self.body.get("error")
        return str(error.get("code") or error.get("type")) if isinstance(error, dict) else ""


def _is_passing(status: int) -> bool:
    """Worth another try."""
    return status == 429 or status >= 500


async def _json(response: aiohttp.ClientResponse) -> Mapping[str, Any]:
    try:
        tree = await response.json(content_type=None)
    except ValueError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _message(tree: Mapping[str, Any], text: str) -> str:
    """OpenAI's ``error.message``, vLLM's older ``message``, FastAPI's ``detail``, or the page."""
    error = tree.get("error")
    found = error.get("message") if isinstance(error, dict) else error
    return str(found or tree.get("message") or tree.get("detail") or text)


def _seconds(retry_after: str | None, now: float) -> float | None:
    """RFC 9110: a number of seconds, or a date. None where there is neither."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - now)
    except (ValueError, TypeError):
        return None


def _model_names(tree: Mapping[str, Any]) -> list[str]:
    data = tree.get("data")
    rows = data if isinstance(data, list) else []
    return sorted(str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row)


def _reply(tree: Mapping[str, Any]) -> tuple[str, str]:
    """(text, finish reason) of the first choice. Content may be a list of parts, or missing."""
    try:
        choice = tree["choices"][0]
        content = choice["message"].get("content")
        if isinstance(content, list):
            content = "".join(str(part.get("text") or "") for part in content)
        return whole_characters(str(content or "")), str(choice.get("finish_reason"))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise PolicyError(
            "the server's answer is not a chat completion: it has no choice"
        ) from None


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _image(png: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return {"type": "image_url", "image_url": {"url": url}}


def _with_data_urls(message: Mapping[str, Any], images: Mapping[str, bytes]) -> Mapping[str, Any]:
    content = message["content"]
    if isinstance(content, str):
        return message
    return {**message, "content": [_part_with_data_url(part, images) for part in content]}


def _part_with_data_url(part: Mapping[str, Any], images: Mapping[str, bytes]) -> Mapping[str, Any]:
    if part["type"] != "image_url":
        return part
    return _image(images[part["image_url"]["url"].removeprefix("sha256:")])
