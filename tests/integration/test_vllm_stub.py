"""The engine ``vllm`` against a server that misbehaves in every way: a stand-in for vLLM that does the
opposite of what it should, on demand. What a real one does is in test_vllm_engine."""

import asyncio
import json
import shutil
import threading
import zlib
from pathlib import Path

import pytest
from aiohttp import web

from dart_gui.errors import DataError, PolicyError, SetupError
from dart_gui.rollout.engines.base import EngineRequest
from dart_gui.rollout.engines.vllm_api import VllmApi
from dart_gui.rollout.engines.vllm_engine import VllmEngine
from dart_gui.rollout.engines.vllm_server import ModelSettings, VllmSettings
from dart_gui.types import SamplingParams, WeightsRef

TINY_AGENT = Path(__file__).resolve().parents[2] / "models" / "tiny-agent"
WAIT_S = 60


class StubServer:
    """vLLM's routes. ``weights`` are what it has loaded; ``faults`` are taken one per call."""

    def __init__(self):
        self.calls, self.faults, self.weights, self.label = [], {}, "", "default"
        self.adapters, self.takes_adapters, self.deaf = {}, True, False
        self.models = []  # as requests named them
        self.processed = True
        self.healthy = True
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(WAIT_S)
        return self

    async def _start(self):
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(WAIT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()

    async def _answer(self, request):
        path = request.path
        if path not in ("/health", "/metrics"):
            self.calls.append(path)
        body = json.loads(await request.read() or b"{}")
        if queue := self.faults.get(path):
            return self._fault(queue.pop(0))
        if "lora_adapter" in path and not (self.takes_adapters and body["lora_name"]):
            return self._fault(400 if self.takes_adapters else 404)
        return web.json_response(self._body(path, body), status=200 if self.healthy else 503)

    @staticmethod
    def _fault(fault):
        if isinstance(fault, int):
            return web.json_response({"error": {"message": "boom"}}, status=fault)
        if fault == "html":
            return web.Response(text="<html>hello</html>")
        return web.json_response(fault)

    def _body(self, path, body):
        match path:
            case "/v1/models":
                served = {"id": "served", "max_model_len": 1024, "root": str(TINY_AGENT)}
                return {"data": [served, *({"id": name} for name in self.adapters)]}
            case "/v1/load_lora_adapter" if body["lora_name"]:
                self.adapters[body["lora_name"]] = body["lora_path"]
            case "/v1/unload_lora_adapter":
                del self.adapters[body["lora_name"]]
            case "/weight_info":
                return {"weight_version": self.label}
            case "/collective_rpc":
                self.weights = body["kwargs"]["weights_path"]
            case "/update_weight_version":
                self.label = body["new_version"]
            case "/weight_checker":
                return {"checksums": {"w": self.weights}}
            case "/v1/chat/completions":
                return self.completion(body)
        return {}

    def completion(self, body, **choice):
        logprob = -0.5 / (body["temperature"] or 1.0) if self.processed else -0.5
        if not self.deaf and (path := self.adapters.get(body["model"])):
            logprob -= 1e-3 * (1 + zlib.crc32(Path(path).name.encode()) % 30)
        self.models.append(body["model"])
        content = [
            {"token": f"token_id:{token}", "logprob": logprob, "top_logprobs": []}
            for token in (5, 841)[: body["max_tokens"]]
        ]
        for item in content:
            item["top_logprobs"] = [{"token": item["token"], "logprob": logprob}]
        choice = {
            "message": {"content": "hi"},
            "token_ids": [5, 841][: body["max_tokens"]],
            "finish_reason": "stop",
            "logprobs": {"content": content},
        } | choice
        return {"prompt_token_ids": [1, 2], "choices": [choice]}


@pytest.fixture
def server():
    with StubServer() as stub:
        yield stub


@pytest.fixture
def adopt(server):
    made = []

    def make(*, folder=TINY_AGENT, lora_rank=0, **settings):
        failures = []
        model = ModelSettings(
            folder=folder,
            max_context=1024,
            max_batch_size=4,
            dtype="float32",
            threads=1,
            lora_rank=lora_rank,
        )
        engine = VllmEngine(
            model,
            VllmSettings(url=server.url, args=[], env=[], start_timeout_s=2, **settings),
            policy_version=0,
            request_timeout_s=WAIT_S,
            on_failure=lambda: failures.append("given up"),
        )
        engine.failures = failures
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


def ask(engine, **sampling):
    params = SamplingParams(**({"temperature": 1.0, "max_tokens": 8, "seed": 1} | sampling))
    messages = [{"role": "user", "content": "hello"}]
    request = EngineRequest(messages=messages, images={}, sampling=params)
    return engine.submit(request).result(WAIT_S)


def fresh(tmp_path):
    folder = tmp_path / "new"
    shutil.copytree(TINY_AGENT, folder)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4:] = b"\0\0\0\0"
    path.write_bytes(data)
    return WeightsRef(policy_version=1, path=str(folder))


def test_an_adopted_server_gets_the_wanted_weights_once(server, adopt):
    adopt()
    assert server.weights == str(TINY_AGENT)
    assert server.calls.count("/collective_rpc") == 1
    server.calls.clear()
    adopt()
    assert "/collective_rpc" not in server.calls


def test_raw_log_probabilities_are_refused(server, adopt):
    server.processed = False
    with pytest.raises(SetupError, match="--logprobs-mode processed_logprobs"):
        adopt()


def test_a_server_that_is_not_there_is_awaited_and_then_an_error(server, adopt):
    server.healthy = False
    with pytest.raises(SetupError, match="was not ready after"):
        adopt()


@pytest.mark.parametrize("fault", [500, "html", {"choices": []}, {}])
def test_one_bad_answer_is_asked_for_again(server, adopt, fault):
    engine = adopt()
    server.faults["/v1/chat/completions"] = [fault]
    assert ask(engine).response_ids == [5, 841]
    assert engine.failures == []


def test_an_aborted_reply_is_asked_for_again(server, adopt):
    engine = adopt()
    cut = server.completion(
        {"temperature": 1.0, "max_tokens": 8, "model": "served"}, finish_reason="abort"
    )
    server.faults["/v1/chat/completions"] = [cut]
    assert ask(engine).finish_reason == "stop"


def test_a_request_that_fails_alone_costs_only_itself(server, adopt):
    engine = adopt()
    server.faults["/v1/chat/completions"] = [500] * 3
    with pytest.raises(PolicyError, match="no answer after 3 tries"):
        ask(engine)
    assert engine.failures == []
    assert ask(engine).response_ids == [5, 841]


def test_a_server_that_fails_the_known_prompt_too_is_given_up(server, adopt):
    engine = adopt()
    server.faults["/v1/chat/completions"] = ["html"] * 10
    with pytest.raises(PolicyError, match="is given up"):
        ask(engine)
    assert engine.failures == ["given up"]
    with pytest.raises(PolicyError, match="is given up"):
        ask(engine)


def test_a_server_whose_weights_changed_by_themselves_is_given_up(server, adopt):
    engine = adopt()
    server.weights = "others"
    server.faults["/v1/chat/completions"] = [500] * 3
    with pytest.raises(PolicyError, match="no longer those of the load"):
        ask(engine)
    assert engine.failures == ["given up"]


def test_new_weights_are_loaded_between_pause_and_resume(server, adopt, tmp_path):
    engine = adopt()
    server.calls.clear()
    engine.load_weights(fresh(tmp_path))
    assert server.calls[:4] == ["/pause", "/collective_rpc", "/update_weight_version", "/resume"]
    assert engine.policy_version == 1
    assert server.weights == str(tmp_path / "new")


def test_a_load_that_fails_goes_back_and_resumes(server, adopt, tmp_path):
    engine = adopt()
    server.calls.clear()
    server.faults["/collective_rpc"] = [500]
    with pytest.raises(DataError, match="boom"):
        engine.load_weights(fresh(tmp_path))
    assert (engine.policy_version, server.weights, engine.failures) == (0, str(TINY_AGENT), [])
    assert server.calls.count("/resume") == server.calls.count("/pause") == 2
    assert ask(engine).response_ids == [5, 841]


def test_a_load_that_changed_nothing_is_a_failure(server, adopt, tmp_path):
    engine = adopt()
    server.faults["/collective_rpc"] = [{"results": [None]}]  # it says so, and loads nothing
    with pytest.raises(DataError, match="serves what it did before"):
        engine.load_weights(fresh(tmp_path))
    assert (engine.policy_version, engine.failures) == (0, [])


def test_an_adopted_server_in_an_unknown_state_is_given_up(server, adopt, tmp_path):
    engine = adopt()
    server.faults["/collective_rpc"] = [500, 500]
    with pytest.raises(PolicyError, match="unknown state"):
        engine.load_weights(fresh(tmp_path))
    assert engine.failures == ["given up"]


class OwnServer:
    """Stands for the process that an engine starts: it comes up with what it is told to serve."""

    running = True

    def __init__(self, server, engine):
        self._server, self.started, self.num_stops = server, [], 0
        engine._connect = self._connect
        engine._server = self

    async def _connect(self):
        return VllmApi(self._server.url, timeout_s=WAIT_S)

    def start(self, model):
        self.started.append(model)
        self._server.weights, self._server.adapters = str(model.folder), {}

    def stop(self):
        self.num_stops += 1

    def close(self):
        pass


def test_a_restart_comes_up_with_the_weights_in_service(server, adopt, tmp_path):
    engine = adopt()
    weights = fresh(tmp_path)
    engine.load_weights(weights)
    own = OwnServer(server, engine)
    server.faults["/collective_rpc"] = [500, 500]
    with pytest.raises(DataError, match="boom"):
        engine.load_weights(WeightsRef(policy_version=2, path=str(TINY_AGENT)))
    assert [str(model.folder) for model in own.started] == [weights.path]
    assert (own.num_stops, engine.policy_version, engine.failures) == (1, 1, [])
    assert ask(engine).response_ids == [5, 841]


# --- adapters --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Of rank 2, by version."""
    from dart_gui.model.lora import LoraPolicy

    place, found = tmp_path_factory.mktemp("adapters"), {}
    policy = LoraPolicy(TINY_AGENT, rank=2, alpha=2, targets=("q_proj",), device="cpu")
    for version in (1, 2, 3):
        for name, parameter in policy.network.named_parameters():
            if ".lora_B." in name:
                parameter.data.fill_(0.01 * version)
        folder = place / f"adapter-{version}"
        policy.save(folder)
        found[version] = WeightsRef(policy_version=version, path=str(folder))
    return found


def only_name(server):
    (name,) = server.adapters
    return name


def test_requests_name_the_adapter_of_their_version(server, adopt, adapters):
    engine = adopt(lora_rank=2)
    ask(engine)
    assert server.models[-1] == "served"
    for version, weights in adapters.items():
        engine.load_weights(weights)
        assert server.adapters == {only_name(server): weights.path}  # those before are unloaded
        ask(engine)
        assert server.models[-1] == only_name(server)
        assert engine.policy_version == version
    assert "/collective_rpc" not in server.calls
    assert "/pause" not in server.calls


def test_the_base_itself_needs_no_adapter(server, adopt, adapters):
    engine = adopt(lora_rank=2)
    engine.load_weights(adapters[1])
    engine.load_weights(WeightsRef(policy_version=7, path=str(TINY_AGENT)))
    ask(engine)
    assert (server.models[-1], server.adapters, engine.policy_version) == ("served", {}, 7)


def test_a_worker_that_starts_at_an_adapter_serves_its_base(server, adopt, adapters):
    server.adapters["dart-9-of-a-worker-before"] = "/gone"
    engine = adopt(folder=Path(adapters[2].path))
    assert list(server.adapters.values()) == [adapters[2].path]
    ask(engine)
    assert server.models[-1] == only_name(server)


@pytest.mark.parametrize("fault", [500, 404, 400])
def test_an_adapter_that_is_not_taken_leaves_the_one_before(server, adopt, adapters, fault):
    engine = adopt(lora_rank=2)
    engine.load_weights(adapters[1])
    server.calls.clear()
    server.faults["/v1/load_lora_adapter"] = [fault]
    with pytest.raises(DataError, match="boom"):
        engine.load_weights(adapters[2])
    assert server.adapters == {only_name(server): adapters[1].path}
    assert server.calls.count("/v1/load_lora_adapter") == 1  # the old one was never gone
    assert (engine.policy_version, engine.failures) == (1, [])
    assert ask(engine).response_ids == [5, 841]


def test_a_restart_comes_up_with_the_adapter_in_service(server, adopt, adapters):
    engine = adopt(folder=Path(adapters[3].path))
    engine.load_weights(adapters[1])
    own = OwnServer(server, engine)
    server.faults["/v1/load_lora_adapter"] = [500]
    server.faults["/weight_checker"] = [500]  # and the look at what is left fails too
    with pytest.raises(DataError, match="boom"):
        engine.load_weights(adapters[2])
    (model,) = own.started
    assert (str(model.folder), model.lora_rank) == (adapters[1].path, 2)
    assert server.adapters == {only_name(server): adapters[1].path}
    assert (engine.policy_version, engine.failures) == (1, [])


def test_an_adapter_without_effect_is_a_failure(server, adopt, adapters):
    engine = adopt(lora_rank=2)
    server.deaf = True
    with pytest.raises(DataError, match="serves what it did before"):
        engine.load_weights(adapters[1])
    assert (server.adapters, engine.policy_version, engine.failures) == ({}, 0, [])
    with pytest.raises(SetupError, match="serves its base"):
        adopt(folder=Path(adapters[1].path))


def test_an_old_adapter_that_cannot_be_unloaded_fails_no_update(server, adopt, adapters):
    engine = adopt(lora_rank=2)
    engine.load_weights(adapters[1])
    server.faults["/v1/unload_lora_adapter"] = [500]
    engine.load_weights(adapters[2])
    assert engine.policy_version == 2
    assert len(server.adapters) == 2


def test_whole_weights_and_adapters_are_not_mixed(server, adopt, adapters, tmp_path):
    with pytest.raises(DataError, match=r"started without train\.lora_rank"):
        adopt().load_weights(adapters[1])
    with pytest.raises(DataError, match="neither one nor the base"):
        adopt(lora_rank=2).load_weights(fresh(tmp_path))
    assert server.adapters == {}


def test_a_rank_that_the_server_has_no_room_for_is_refused(server, adopt, adapters):
    engine = adopt(lora_rank=1)
    server.calls.clear()
    with pytest.raises(DataError, match="of rank 2, the server takes up to 1"):
        engine.load_weights(adapters[1])
    assert server.calls == []


def test_an_adopted_server_that_takes_no_adapters_is_refused(server, adopt):
    server.takes_adapters = False
    with pytest.raises(SetupError, match="--enable-lora"):
        adopt(lora_rank=2)


def test_an_adopted_server_of_another_base_is_refused(server, adopt, tmp_path):
    other = shutil.copytree(TINY_AGENT, tmp_path / "other")
    with pytest.raises(SetupError, match="has to serve its base"):
        adopt(folder=Path(other), lora_rank=2)
