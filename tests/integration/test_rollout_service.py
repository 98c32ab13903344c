"""The service over real HTTP and a real worker process with the fake engine."""

import asyncio
import base64
import hashlib
import io
import os
import socket
from types import SimpleNamespace

import aiohttp
import pytest
import pytest_asyncio
from PIL import Image

from dart_gui.config import from_dict
from dart_gui.errors import AuthError, ContextLengthError, PolicyError, SetupError
from dart_gui.rollout.client import RolloutClient
from dart_gui.rollout.service import serve
from dart_gui.rollout.states import WorkerState
from dart_gui.types import SamplingParams

pytestmark = pytest.mark.asyncio(loop_scope="module")
TOKEN = "a-token-of-this-test"
SAMPLING = SamplingParams(temperature=1.0, max_tokens=40, seed=5)
HELLO = [{"role": "user", "content": "hello"}]


def png(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def sha(data):
    return hashlib.sha256(data).hexdigest()


def image_part(url):
    return {"type": "image_url", "image_url": {"url": url}}


def prompt(*hashes):
    return [{"role": "user", "content": [image_part(f"sha256:{key}") for key in hashes]}]


def config(**rollout):
    settings = {"engine": "fake", "num_workers": 1, "max_context": 512, "request_timeout_s": 20}
    return from_dict({"rollout": settings | rollout}, source="test")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def running():
    async with serve(config(), token=TOKEN) as service:
        yield service


@pytest_asyncio.fixture(loop_scope="module")
async def http(running):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(running.url, headers=headers) as session:

        async def call(method, path, **arguments):
            async with session.request(method, path, **arguments) as response:
                return SimpleNamespace(status=response.status, body=await response.json())

        yield call


@pytest_asyncio.fixture(loop_scope="module")
async def client(running):
    async with RolloutClient(running.url, TOKEN, timeout_s=20) as rollout_client:
        yield rollout_client


ROUTES = [
    ("PUT", f"/images/{'0' * 64}"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/weights"),
    ("GET", "/v1/models"),
    ("GET", "/status"),
    ("GET", "/health"),
    ("GET", "/nothing-here"),
]


@pytest.mark.parametrize("header", [None, "Bearer wrong", TOKEN, f"Basic {TOKEN}"])
async def test_every_route_wants_the_token(running, header):
    headers = {"Authorization": header} if header else {}
    async with aiohttp.ClientSession(running.url, headers=headers) as session:
        for method, path in ROUTES:
            async with session.request(method, path) as response:
                assert response.status == 401
                assert (await response.json())["error"]["type"] == "authentication_error"


async def test_a_wrong_token_is_an_auth_error(running):
    async with RolloutClient(running.url, "wrong", timeout_s=20) as stranger:
        with pytest.raises(AuthError):
            await stranger.complete(HELLO, {}, SAMPLING, trajectory_id="t")
        with pytest.raises(AuthError):
            await stranger.wait_ready(5)


async def test_a_completion_has_the_facts_of_a_step(client):
    image = png(1)
    key = sha(image)
    completion = await client.complete(prompt(key), {key: image}, SAMPLING, trajectory_id="t")
    assert completion.image_hashes == [key]
    assert (completion.policy_version, completion.worker_id) == (0, "worker-0")
    assert completion.sampling == SAMPLING
    assert completion.text.startswith("Thought: versions 0 to 0.\nAction: click(")
    assert completion.finish_reason == "stop"
    assert len(completion.response_ids) == len(completion.rollout_logprobs) > 10
    again = await client.complete(prompt(key), {key: image}, SAMPLING, trajectory_id="u")
    assert again == completion


async def test_the_openai_shape(http):
    image = png(2)
    messages = [{"role": "user", "content": [image_part(f"sha256:{sha(image)}")]}]
    put = await http("PUT", f"/images/{sha(image)}", data=image)
    assert (put.status, put.body) == (200, {"sha256": sha(image), "num_bytes": len(image)})
    body = {"messages": messages, "model": "x", "seed": 1, "logprobs": True, "max_tokens": 3}
    answer = await http("POST", "/v1/chat/completions", json=body)
    assert answer.status == 200
    (choice,) = answer.body["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Thought: ver"}
    assert choice["finish_reason"] == "length"
    assert len(choice["logprobs"]["content"]) == 3
    assert "token_ids" not in choice
    assert "prompt_token_ids" not in answer.body
    body |= {"return_token_ids": True, "logprobs": False}
    answer = await http("POST", "/v1/chat/completions", json=body)
    assert len(answer.body["choices"][0]["token_ids"]) == 3
    assert len(answer.body["prompt_token_ids"]) == answer.body["usage"]["prompt_tokens"]
    assert answer.body["choices"][0]["logprobs"] is None


async def test_requests_without_a_seed_get_seeds_of_their_own(http):
    body = {"messages": HELLO}
    answers = [await http("POST", "/v1/chat/completions", json=body) for _ in range(2)]
    first, second = (answer.body["sampling"]["seed"] for answer in answers)
    assert first != second


async def test_data_urls_are_as_good_as_hashes(http):
    image = png(3)
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    messages = [{"role": "user", "content": [image_part(url)]}]
    answer = await http("POST", "/v1/chat/completions", json={"messages": messages, "seed": 1})
    assert answer.body["image_hashes"] == [sha(image)]
    by_hash = {"messages": prompt(sha(image)), "seed": 1}
    named = await http("POST", "/v1/chat/completions", json=by_hash)
    assert named.body["choices"] == answer.body["choices"]


async def test_an_unknown_image_is_named(http):
    hashes = [sha(b"never put"), sha(b"neither")]
    body = {"messages": prompt(*hashes)}
    answer = await http("POST", "/v1/chat/completions", json=body)
    assert answer.status == 404
    assert answer.body["error"]["type"] == "missing_images"
    assert answer.body["error"]["hashes"] == hashes


async def test_a_prompt_that_does_not_fit_says_so(client):
    messages = [{"role": "user", "content": "word " * 600}]
    with pytest.raises(ContextLengthError):
        await client.complete(messages, {}, SAMPLING, trajectory_id="t")


async def test_an_image_that_the_caller_lacks_is_a_policy_error(client):
    with pytest.raises(PolicyError, match="did not come with it"):
        await client.complete(prompt(sha(b"x")), {}, SAMPLING, trajectory_id="t")


@pytest.mark.parametrize(
    ("path", "data"),
    [
        (f"/images/{sha(b'other bytes')}", png(4)),
        (f"/images/{sha(b'not a png')}", b"not a png"),
        (f"/images/{sha(png(4)[:-6])}", png(4)[:-6]),
        (f"/images/{sha(b'')}", b""),
        (f"/images/{sha(png(4)).upper()}", png(4)),
        ("/images/abc", png(4)),
        ("/images/..%2f..%2fetc", png(4)),
    ],
)
async def test_an_image_that_is_not_what_it_says_is_refused(http, path, data):
    answer = await http("PUT", path, data=data)
    assert answer.status in (400, 404)
    assert answer.body["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "data", "status"),
    [
        ("POST", "/v1/chat/completions", b"", 400),
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", b"\xff\xfe\x00", 400),
        ("POST", "/v1/chat/completions", b"[1]", 400),
        ("POST", "/v1/chat/completions", b"[" * 100_000, 400),
        ("POST", "/v1/chat/completions", b'{"messages": 5}', 400),
        ("POST", "/v1/chat/completions", b'{"messages": [], "top_p": 0.5}', 400),
        ("POST", "/weights", b'{"path": "x"}', 400),
        ("POST", "/weights", b'{"policy_version": "3", "path": "x"}', 400),
        ("POST", "/weights", b'{"policy_version": -1, "path": "x"}', 400),
        ("POST", "/weights", b'{"policy_version": 1, "path": ""}', 400),
        ("POST", "/weights", b'{"policy_version": 1, "path": "/' + b"/" * 4095 + b'"}', 400),
        ("POST", "/weights", b'{"policy_version": 1, "path": "a\\u0000b"}', 400),
        ("GET", "/v1/chat/completions", None, 405),
        ("GET", "/docs", None, 404),
    ],
)
async def test_bad_input_is_never_a_500(http, method, path, data, status):
    answer = await http(method, path, data=data)
    assert answer.status == status
    assert set(answer.body["error"]) >= {"message", "type", "code"}


async def test_models_and_health(http):
    models = await http("GET", "/v1/models")
    assert [model["id"] for model in models.body["data"]] == ["tiny-agent"]
    assert (await http("GET", "/health")).status == 200


async def test_status_counts(client):
    before = (await client.status()).workers[0].num_completed
    await client.complete(HELLO, {}, SAMPLING, trajectory_id="t")
    status = await client.status()
    (worker,) = status.workers
    assert worker.num_completed == before + 1
    assert (worker.state, worker.num_in_flight) == (WorkerState.READY, 0)
    assert (status.desired_version, status.min_version, status.queue_size) == (0, 0, 0)


class Relay:
    """A TCP relay that counts the requests by their first words."""

    def __init__(self, url):
        self.host, port = url.removeprefix("http://").split(":")
        self.port = int(port)
        self.puts = 0

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.connect, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def connect(self, reader, writer):
        upstream = await asyncio.open_connection(self.host, self.port)
        await asyncio.gather(self.pump(reader, upstream[1]), self.pump(upstream[0], writer))

    async def pump(self, reader, writer):
        while data := await reader.read(65536):
            self.puts += data.count(b"PUT /images/")
            writer.write(data)
        writer.close()


async def test_a_screenshot_travels_once(running):
    images = {sha(png(shade)): png(shade) for shade in range(100, 105)}
    keys = list(images)
    async with Relay(running.url) as relay, RolloutClient(relay.url, TOKEN, timeout_s=20) as client:
        requests = [
            client.complete(prompt(*keys[: 1 + step]), images, SAMPLING, trajectory_id=f"{episode}")
            for episode in range(6)
            for step in range(5)
        ]
        await asyncio.gather(*requests)
    assert relay.puts == 5


async def test_images_that_the_service_forgot_are_put_again():
    big = os.urandom(700_000)

    def large_png(shade):
        buffer = io.BytesIO()
        Image.frombytes("RGB", (500, 466), (bytes([shade]) + big)[: 500 * 466 * 3]).save(
            buffer, "png", compress_level=0
        )
        return buffer.getvalue()

    images = {sha(image): image for image in map(large_png, range(3))}  # 0.7 MB each
    async with (
        serve(config(image_cache_mb=1), token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=20) as client,
    ):
        for _ in range(2):
            for key, image in images.items():
                completion = await client.complete(
                    prompt(key), {key: image}, SAMPLING, trajectory_id="t"
                )
                assert completion.image_hashes == [key]


async def test_a_taken_port_is_a_setup_error():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SetupError, match=f"rollout.port = {port} .* is taken"):
            async with serve(config(port=port), token=TOKEN):
                pass


async def test_a_model_folder_that_is_not_one_is_a_setup_error(tmp_path):
    (tmp_path / "fake_engine.json").write_text("{")
    broken = from_dict(
        {"rollout": {"engine": "fake"}, "model": {"path": str(tmp_path)}}, source="test"
    )
    with pytest.raises(SetupError, match="not a script of the fake engine"):
        async with serve(broken, token=TOKEN):
            pass
