"""Requests to vLLM and its answers, without a server."""

import hashlib
import io
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dart_gui.config import from_dict
from dart_gui.errors import PolicyError, SetupError
from dart_gui.model.folder import TokenFacts
from dart_gui.rollout.assembly import gpu_group, worker_vllm
from dart_gui.rollout.engines.base import EngineRequest
from dart_gui.rollout.engines.vllm_api import ServerFailedError
from dart_gui.rollout.engines.vllm_chat import ChatTranslator, entropy_estimate
from dart_gui.rollout.engines.vllm_server import (
    ModelSettings,
    VllmSettings,
    serve_command,
    server_environment,
)
from dart_gui.rollout.engines.vllm_weights import adapter_flags
from dart_gui.types import SamplingParams

FACTS = TokenFacts(frozenset({7, 3}), [5, 6])


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(buffer, "png")
    return buffer.getvalue()


PNG = png()
KEY = hashlib.sha256(PNG).hexdigest()


def request(images=None):
    parts = [
        {"type": "text", "text": "hello"},
        {"type": "image_url", "image_url": {"url": f"sha256:{KEY}"}},
    ]
    return EngineRequest(
        messages=[{"role": "user", "content": parts}],
        images={KEY: PNG} if images is None else images,
        sampling=SamplingParams(temperature=0.7, max_tokens=9, seed=2**62),
    )


def token(number, logprob, others=()):
    top = [{"token": f"token_id:{number}", "logprob": logprob}]
    top += [{"token": f"token_id:{other}", "logprob": value} for other, value in others]
    return {"token": f"token_id:{number}", "logprob": logprob, "top_logprobs": top}


def answer(**choice):
    choice = {
        "token_ids": [1, 7],
        "logprobs": {"content": [token(1, -0.5, [(2, -1.0)]), token(7, 0.00002)]},
        "finish_reason": "stop",
        "message": {"content": "text"},
    } | choice
    return {"choices": [choice], "prompt_token_ids": [9, 8]}


def translator():
    return ChatTranslator(FACTS, model="policy", top_logprobs=4)


def test_the_whole_distribution_is_asked_for_whatever_the_server_defaults_to():
    body = translator().body(request(), "v3")
    assert (body["temperature"], body["max_tokens"], body["seed"]) == (0.7, 9, 2**62)
    assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1, 0, 0, 1)
    assert body["logit_bias"] == {"5": -100.0, "6": -100.0}
    assert body["stop_token_ids"] == [3, 7]
    assert body["return_token_ids"] is True


def test_caches_are_salted_by_the_weights_and_images_named_by_content():
    old, new = (translator().body(request(), salt) for salt in ("v3", "v4"))
    assert (old["cache_salt"], new["cache_salt"]) == ("v3", "v4")
    part = new["messages"][0]["content"][1]
    assert part["uuid"] == f"{KEY}@v4"
    assert part["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize("images", [{}, {KEY: PNG[:40]}])
def test_an_image_that_is_not_there_or_broken(images):
    with pytest.raises(PolicyError, match="the image"):
        translator().body(request(images), "v")


def test_an_answer_is_taken_as_it_is():
    result = translator().result(answer(), request())
    assert (result.prompt_ids, result.response_ids) == ([9, 8], [1, 7])
    assert result.rollout_logprobs == [-0.5, 0.0]
    assert result.image_hashes == [KEY]
    assert result.masked_token_ids == [5, 6]
    assert result.entropies == [pytest.approx(entropy_estimate([-0.5, -1.0])), 0.0]


@pytest.mark.parametrize(
    "choice",
    [
        {"token_ids": [1]},
        {"token_ids": [1, 8]},
        {"token_ids": [1, True]},
        {"token_ids": [], "logprobs": {"content": []}},
        {"token_ids": None},
        {"logprobs": None},
        {"logprobs": {"content": [token(1, math.nan), token(7, -1.0)]}},
        {"logprobs": {"content": [token(1, 0.5), token(7, -1.0)]}},
        {"logprobs": {"content": [token(1, None), token(7, -1.0)]}},
        {"finish_reason": "abort"},
        {"message": None},
    ],
)
def test_garbage_is_no_answer(choice):
    with pytest.raises(ServerFailedError, match="not a completion"):
        translator().result(answer(**choice), request())


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [None]}])
def test_an_answer_without_a_choice(body):
    with pytest.raises(ServerFailedError):
        translator().result(body, request())


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=12), st.integers(1, 12))
def test_the_estimate_is_a_lower_bound_that_is_exact_for_the_whole(weights, listed):
    total = math.fsum(weights)
    logprobs = sorted((math.log(weight / total) for weight in weights), reverse=True)
    exact = -math.fsum(math.exp(x) * x for x in logprobs)
    assert entropy_estimate(logprobs[:listed]) <= exact + 1e-9
    assert entropy_estimate(logprobs) == pytest.approx(exact, abs=1e-9)


# --- the command -----------------------------------------------------------------------------


def model(tmp_path):
    return ModelSettings(
        folder=tmp_path, max_context=4096, max_batch_size=32, dtype="bfloat16", threads=2
    )


def test_the_command_line(tmp_path):
    executable = tmp_path / "vllm"
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    settings = VllmSettings(
        executable=str(executable),
        tensor_parallel_size=2,
        args=["--seed", "1"],
        env=["A=b=c"],
        devices="2,3",
    )
    command = serve_command(settings, model(tmp_path), tmp_path / "s")
    assert command[:3] == [str(executable), "serve", str(tmp_path)]
    assert command[command.index("--logprobs-mode") + 1] == "processed_logprobs"
    assert command[command.index("--tensor-parallel-size") + 1] == "2"
    assert command[-2:] == ["--seed", "1"]
    env = server_environment(settings, 2, {"PYTHONPATH": "/ours", "PATH": "/bin"})
    assert "PYTHONPATH" not in env
    assert (env["A"], env["CUDA_VISIBLE_DEVICES"], env["PATH"]) == ("b=c", "2,3", "/bin")


def test_the_command_line_for_adapters(tmp_path):
    executable = tmp_path / "vllm"
    executable.write_text("#!/bin/sh\n")
    executable.chmod(0o755)
    settings = VllmSettings(executable=str(executable), args=[], env=[])
    plain = serve_command(settings, model(tmp_path), tmp_path / "s")
    assert "--enable-lora" not in plain
    wanted = replace(model(tmp_path), lora_rank=24)
    command = serve_command(settings, wanted, tmp_path / "s")
    assert command[2] == str(tmp_path)
    assert command[command.index("--max-lora-rank") + 1] == "32"  # vLLM knows certain ones
    assert command[command.index("--max-loras") + 1] == "1"
    assert command[command.index("--max-cpu-loras") + 1] == "2"
    assert set(command) >= {"--enable-lora", *plain}


@pytest.mark.parametrize(
    ("rank", "size"), [(1, "1"), (2, "8"), (64, "64"), (65, "128"), (512, "512")]
)
def test_a_rank_of_the_servers_own_holds_ours(rank, size):
    assert adapter_flags(rank)[-1] == size


def test_a_missing_executable_says_what_to_do(tmp_path):
    settings = VllmSettings(executable=str(tmp_path / "none"), args=[], env=[])
    with pytest.raises(SetupError, match=r"vllm\.urls"):
        serve_command(settings, model(tmp_path), tmp_path / "s")


def test_each_worker_has_its_gpus_or_its_server(monkeypatch):
    assert [gpu_group("4,5,6,7", index, 2) for index in (0, 1)] == ["4,5", "6,7"]
    assert gpu_group(None, 2, 1) == "2"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    rollout = {"engine": "vllm", "num_workers": 2}
    own = from_dict({"rollout": rollout, "vllm": {"tensor_parallel_size": 2}}, source="test")
    assert VllmSettings(**worker_vllm(own, "worker-1")).devices == "2,3"
    urls = ["http://a:1", "http://b:1"]
    adopted = from_dict({"rollout": rollout, "vllm": {"urls": urls}}, source="test")
    assert VllmSettings(**worker_vllm(adopted, "worker-1")).url == "http://b:1"
