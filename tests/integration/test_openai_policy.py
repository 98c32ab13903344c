"""The client of foreign servers against one on loopback that misbehaves on demand."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from dart_gui import config as config_module
from dart_gui.errors import AuthError, ConfigError, ContextLengthError, PolicyError
from dart_gui.rollout.service import serve
from dart_gui.runner.fakes import screenshot
from dart_gui.runner.openai_policy import Endpoint, OpenAIPolicy, checked_base_url
from dart_gui.types import SamplingParams

SAMPLING = SamplingParams(temperature=0.5, max_tokens=77, seed=9)
KEY = "sk-very-secret"
PNG = screenshot(3)
MESSAGES = [
    {"role": "system", "content": "You are helpful."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Click OK."},
            {"type": "image_url", "image_url": {"url": "sha256:ab"}},
        ],
    },
]


class QuickClock:
    """Time passes by waiting alone; ``waits`` are the seconds of each."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0
        self.waits: list[float] = []

    def now(self) -> float:
        return self.seconds

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.seconds += seconds


@dataclass
class Server:
    """Answers with the given (status, body, headers) in turn, the last one again and again."""

    answers: list[tuple[int, Any, dict[str, str]]] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""

    async def chat(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        self.keys.append(request.headers.get("Authorization"))
        status, body, headers = self.answers[min(len(self.bodies), len(self.answers)) - 1]
        return web.json_response(body, status=status, headers=headers)

    async def list_models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in self.models]})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", made.chat)
    app.router.add_get("/v1/models", made.list_models)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield made
    await runner.cleanup()


def good(text: Any = "Action: wait()", finish_reason: str = "stop") -> tuple[int, Any, dict]:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return 200, {"choices": [choice]}, {}


def bad(status: int, message: str = "no", **headers: str) -> tuple[int, Any, dict[str, str]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"error": {"message": message, "type": "x"}}, named


def policy(server: Server, clock: QuickClock | None = None, **changes: Any) -> OpenAIPolicy:
    fields = {"base_url": server.url, "model": "m", "key": KEY, "key_env": "MY_KEY"}
    endpoint = Endpoint(**{**fields, "timeout_s": 100.0, **changes})
    return OpenAIPolicy(endpoint, clock=clock or QuickClock(), spread=lambda: 0.5)


async def complete(asked: OpenAIPolicy) -> Any:
    async with asked:
        return await asked.complete(MESSAGES, {"ab": PNG}, SAMPLING, trajectory_id="t")


async def test_what_is_asked_and_answered(server: Server) -> None:
    server.answers = [good("Action: wait()", "length")]
    completion = await complete(policy(server))
    (body,) = server.bodies
    url = body["messages"][1]["content"][1]["image_url"]["url"]
    assert base64.b64decode(url.removeprefix("data:image/png;base64,")) == PNG
    assert body["messages"][0] == MESSAGES[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.5, 77)
    assert body["seed"] == 9
    assert set(body) == {"model", "messages", "temperature", "max_tokens", "seed"}
    assert server.keys == [f"Bearer {KEY}"]
    assert (completion.text, completion.finish_reason) == ("Action: wait()", "length")
    assert completion.foreign
    assert completion.response_ids == []


async def test_settings_for_other_servers(server: Server) -> None:
    server.answers = [good()]
    await complete(policy(server, send_seed=False, max_tokens_name="max_completion_tokens", key=""))
    (body,) = server.bodies
    assert "seed" not in body
    assert body["max_completion_tokens"] == 77
    assert "max_tokens" not in body
    assert server.keys == [None]


@pytest.mark.parametrize(
    ("content", "text"),
    [([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"), (None, "")],
)
async def test_content_in_parts_or_missing(server: Server, content: Any, text: str) -> None:
    server.answers = [good(content)]
    assert (await complete(policy(server))).text == text


async def test_busy_servers_are_asked_again_when_they_say(server: Server) -> None:
    clock = QuickClock()
    date = formatdate(clock.now() + 1 + 7 + 2 + 30, usegmt=True)
    server.answers = [
        bad(503),
        bad(429, Retry_After="7"),
        bad(500),
        bad(429, Retry_After=date),
        good(),
    ]
    asked = policy(server, clock)
    assert (await complete(asked)).text == "Action: wait()"
    # 1 s, what it says, then four times the first (it doubles each time), then until the date
    assert clock.waits == pytest.approx([1.0, 7.0, 4.0, 28.0])
    assert asked.num_retries == 4


async def test_a_server_that_stays_busy_is_given_up(server: Server) -> None:
    clock = QuickClock()
    server.answers = [bad(503, "overloaded")]
    with pytest.raises(PolicyError, match=r"no answer within 100 s; last: HTTP 503: overloaded"):
        await complete(policy(server, clock))
    assert sum(clock.waits) <= 100
    server.answers = [bad(429, "quota", Retry_After="3600")]
    with pytest.raises(PolicyError, match="quota"):
        await complete(policy(server))


async def test_a_key_that_is_refused_and_never_shown(server: Server) -> None:
    server.answers = [bad(401, f"Incorrect API key: {KEY}")]
    with pytest.raises(AuthError, match="environment variable MY_KEY") as caught:
        await complete(policy(server))
    assert KEY not in str(caught.value)
    assert "***" in str(caught.value)
    with pytest.raises(AuthError, match="None was sent, as the environment variable MY_KEY"):
        await complete(policy(server, key=""))
    assert KEY not in repr(Endpoint(base_url="u", model="m", key=KEY))


async def test_a_prompt_that_does_not_fit_ends_the_episode(server: Server) -> None:
    server.answers = [bad(400, "This model's maximum context length is 4096 tokens.")]
    with pytest.raises(ContextLengthError):
        await complete(policy(server))
    server.answers = [bad(400, "content policy")]
    with pytest.raises(PolicyError, match="HTTP 400: content policy"):
        await complete(policy(server))


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [{"message": None}]}, [1]])
async def test_an_answer_that_is_none(server: Server, body: Any) -> None:
    server.answers = [(200, body, {})]
    with pytest.raises(PolicyError, match="not a chat completion"):
        await complete(policy(server))


async def test_check_names_the_models_that_there_are(server: Server) -> None:
    server.answers, server.models = [bad(404, "no such model")], ["b", "a"]
    async with policy(server) as asked:
        with pytest.raises(ConfigError, match="has no model 'm'; it has: a, b"):
            await asked.check(PNG, SAMPLING)
    server.models = []
    async with policy(server) as asked:
        with pytest.raises(ConfigError, match="Check the base URL"):
            await asked.check(PNG, SAMPLING)


async def test_check_refuses_before_anything_is_played(server: Server) -> None:
    server.answers = [bad(400, "this model takes no images")]
    async with policy(server) as asked:
        with pytest.raises(ConfigError, match="takes no images"):
            await asked.check(PNG, SAMPLING)
    async with policy(server, base_url="http://127.0.0.1:9/v1") as asked:
        with pytest.raises(ConfigError, match=r"no server at http://127\.0\.0\.1:9/v1"):
            await asked.check(PNG, SAMPLING)
    server.answers = [bad(503), good()]
    server.bodies.clear()
    async with policy(server) as asked:
        await asked.check(PNG, SAMPLING)
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("https://h/api/v2/", "https://h/api/v2"),
        ("http://h/v1/chat/completions", "http://h/v1"),
    ],
)
def test_base_urls(text: str, url: str) -> None:
    assert checked_base_url(text) == url


@pytest.mark.parametrize(
    "text", ["", "localhost:8000", "ftp://h", "http://user:pw@h/v1", "http://h/v1?key=x"]
)
def test_base_urls_that_are_none_or_hold_secrets(text: str) -> None:
    with pytest.raises(ConfigError, match="base URL") as caught:
        checked_base_url(text)
    assert "pw" not in str(caught.value)


async def test_our_own_service_is_such_a_server(tmp_path: Path) -> None:
    (tmp_path / "fake_engine.json").write_text('{"replies": ["Action: wait()"]}')
    overrides = [f"model.path={tmp_path}", "rollout.engine=fake"]
    config = config_module.load(None, overrides)
    async with serve(config, token=KEY) as running:
        endpoint = Endpoint(base_url=checked_base_url(running.url), model="any", key=KEY)
        async with OpenAIPolicy(endpoint, clock=QuickClock()) as asked:
            await asked.check(PNG, SAMPLING)
            got = await asked.complete(MESSAGES, {"ab": PNG}, SAMPLING, trajectory_id="t")
            assert got.text == "Action: wait()"
        wrong = Endpoint(base_url=checked_base_url(running.url), model="any", key="no")
        async with OpenAIPolicy(wrong, clock=QuickClock()) as asked:
            with pytest.raises(AuthError):
                await asked.check(PNG, SAMPLING)
