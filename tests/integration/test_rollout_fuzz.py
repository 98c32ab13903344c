"""The service under fuzzing against its own OpenAPI document: real HTTP, a real worker process with
the fake engine. Never a 500, never a crash, nothing lost."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from dart_gui.config import from_dict
from dart_gui.rollout.service import serve

TOKEN = "a-token-of-this-test"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
CONFIG = {"rollout": {"engine": "fake", "max_context": 512, "request_timeout_s": 20}}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
    ignored_auth,
]


def examples(number: int) -> settings:
    # Shrinking a failure would send hundreds of requests more.
    return settings(
        max_examples=number,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


NUM_WORKERS = 1


class Served:
    """A service in a thread of its own, and what must still hold at its end."""

    def __init__(self) -> None:
        self.url = ""
        self.num_completed = 0
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            async with serve(from_dict(CONFIG, source="test"), token=TOKEN) as running:
                self.url = running.url
                self._ready.set()
                ended = asyncio.create_task(running.wait())
                await asyncio.wait(
                    [ended, asyncio.create_task(self._stop.wait())],
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            self._ready.set()

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._ready.wait(120)
        assert self.url, "the service did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    def call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        headers = {**HEADERS, **arguments.pop("headers", {})}
        answer = httpx.request(method, self.url + path, headers=headers, timeout=60, **arguments)
        self.count(method, path, answer.status_code)
        return answer

    def count(self, method: str, path: str, status: int) -> None:
        is_chat = method == "POST" and path.endswith("/v1/chat/completions")
        self.num_completed += is_chat and status == 200

    def check(self) -> None:
        """No worker was lost, nothing hangs, and every completion that was answered is counted."""
        status = self.call("GET", "/status").json()
        assert [worker["restarts"] for worker in status["workers"]] == [0] * NUM_WORKERS
        assert [worker["state"] for worker in status["workers"]] != ["dead"]
        assert status["queue_size"] == 0
        assert [worker["num_in_flight"] for worker in status["workers"]] == [0]
        assert sum(worker["num_completed"] for worker in status["workers"]) == self.num_completed
        assert self.call("GET", "/health").status_code == 200


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served() as service:
        yield service


@pytest.fixture(scope="module")
def api(served: Served) -> Any:
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json", headers=HEADERS)


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


PNG = picture(1)
KEY = hashlib.sha256(PNG).hexdigest()
IMAGE_PART = {"type": "image_url", "image_url": {"url": f"sha256:{KEY}"}}
GOOD = {
    "messages": [{"role": "user", "content": [IMAGE_PART, {"type": "text", "text": "hello"}]}],
    "seed": 5,
    "logprobs": True,
    "return_token_ids": True,
}


OPERATIONS = [
    ("/images/{key}", "PUT", 20),
    ("/v1/chat/completions", "POST", 60),
    ("/weights", "POST", 30),
    ("/v1/models", "GET", 5),
    ("/status", "GET", 5),
    ("/health", "GET", 5),
]


def test_the_document_names_each_route(served: Served) -> None:
    document = served.call("GET", "/openapi.json").json()
    assert set(document["paths"]) == {path for path, _, _ in OPERATIONS}


@pytest.mark.parametrize(("path", "method", "number"), OPERATIONS)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_the_document_is_kept(
    served: Served, api: Any, path: str, method: str, number: int, mode: GenerationMode
) -> None:
    """What the document allows and what it forbids; the checks are schemathesis' own."""

    @examples(number)
    @given(case=api[path][method].as_strategy(generation_mode=mode))
    def fuzz(case: schemathesis.Case) -> None:
        answer = case.call(headers=HEADERS)
        served.count(case.method, path, answer.status_code)
        case.validate_response(answer, checks=CHECKS, headers=HEADERS)

    before = served.num_completed
    fuzz()
    served.check()
    if (method, path, mode) == ("POST", "/v1/chat/completions", GenerationMode.POSITIVE):
        assert served.num_completed > before, "nothing that was sent was a good request"


# --- near misses: good requests with something wrong in a random place --------------------------

NASTY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 2**63, -(2**63), 10**300, 1e308, float("nan"), float("inf")])
    | st.text(max_size=20)
    | st.sampled_from(
        ["\x00", "\ud800", "<|image_pad|>", "sha256:", "data:image/png;base64,AA", "x" * 9000]
    )
    | st.sampled_from([f"sha256:{KEY}", f"sha256:{KEY.upper()}", "http://localhost/a.png", "user"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=8) | st.sampled_from(["role", "content", "type", "url"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def with_value(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[path[0]] = with_value(tree[path[0]], path[1:], value)
    return copy


@pytest.fixture(scope="module")
def unharmed(served: Served) -> Iterator[None]:
    """What was put and answered before the fuzzing is there, and answered alike, after it."""
    assert served.call("PUT", f"/images/{KEY}", content=PNG).status_code == 200
    before = served.call("POST", "/v1/chat/completions", json=GOOD).json()
    yield
    after = served.call("POST", "/v1/chat/completions", json=GOOD).json()
    for name in ("prompt_token_ids", "entropies", "image_hashes", "usage"):
        assert after[name] == before[name]
    served.check()


@examples(150)
@given(
    place=st.sampled_from(sorted(places(GOOD), key=str)),
    value=NASTY,
    extra=st.none() | st.text(max_size=9),
)
def test_chat_requests_that_are_almost_right(
    served: Served, unharmed: None, place: tuple[Any, ...], value: Any, extra: str | None
) -> None:
    body = with_value(GOOD, place, value)
    if extra is not None and isinstance(body, dict):
        body = {**body, extra: value}
    answer = served.call("POST", "/v1/chat/completions", content=json.dumps(body))
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert set(answer.json()["error"]) >= {"message", "type", "code"}


@examples(60)
@given(at=st.integers(0, len(PNG)), cut=st.booleans(), byte=st.integers(0, 255), name=st.booleans())
def test_pictures_that_are_almost_right(
    served: Served, unharmed: None, at: int, cut: bool, byte: int, name: bool
) -> None:
    """Under the hash of the whole picture, and under the hash of what was sent."""
    data = PNG[:at] if cut else PNG[:at] + bytes([byte]) + PNG[at + 1 :]
    key = hashlib.sha256(data).hexdigest() if name else KEY
    answer = served.call("PUT", f"/images/{key}", content=data)
    is_whole = data.startswith(PNG)
    assert answer.status_code == (
        200 if is_whole and key == hashlib.sha256(data).hexdigest() else 400
    )


@examples(25)
@given(data=st.binary(max_size=200), path=st.sampled_from(["/weights", "/v1/chat/completions"]))
def test_bodies_that_are_no_json(served: Served, unharmed: None, data: bytes, path: str) -> None:
    assert served.call("POST", path, content=data).status_code == 400


@pytest.mark.parametrize(
    "path", ["\ud800", "/" + "x" * 5000, "/no/such/folder", "/dev/null", "~", "a/" * 2000]
)
def test_weights_that_cannot_be_loaded_leave_the_old_ones(
    served: Served, unharmed: None, path: str
) -> None:
    version = served.call("GET", "/status").json()["desired_version"] + 1
    body = json.dumps({"policy_version": version, "path": path}).encode()
    answer = served.call("POST", "/weights", content=body)
    assert answer.status_code in (200, 400)
    assert served.call("POST", "/v1/chat/completions", json=GOOD).status_code == 200
