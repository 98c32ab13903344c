"""What a rollout worker relies on, whatever runs the model."""

import contextlib
import hashlib
import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from dart_gui.errors import ContextLengthError, DataError, PolicyError
from dart_gui.rollout.engines.base import EngineRequest
from dart_gui.rollout.engines.fake import FakeEngine, FakeScript
from dart_gui.types import SamplingParams, WeightsRef

TINY_AGENT = Path(__file__).resolve().parents[2] / "models" / "tiny-agent"
WAIT_S = 60
MAX_CONTEXT = 1024


def png(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (160, 210), (shade, 120, 60)).save(buffer, "png")
    return buffer.getvalue()


def request(text="Click the button.", images=(), **sampling):
    parts = [{"type": "text", "text": text}]
    named = {hashlib.sha256(image).hexdigest(): image for image in images}
    for image in images:
        url = f"sha256:{hashlib.sha256(image).hexdigest()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": parts},
    ]
    params = {"temperature": 1.0, "max_tokens": 24, "seed": 1} | sampling
    return EngineRequest(messages=messages, images=named, sampling=SamplingParams(**params))


@pytest.fixture(
    scope="module",
    params=["fake", "transformers", "adapter", pytest.param("vllm", marks=pytest.mark.vllm)],
)
def kind(request):
    """``adapter``: the engine ``transformers`` that starts at an adapter, and takes it again."""
    if request.param == "vllm":
        request.getfixturevalue("vllm_url")
    if request.param in ("transformers", "adapter") and not (TINY_AGENT / "config.json").exists():
        pytest.skip(f"the tiny agent is not in {TINY_AGENT}")
    return request.param


@pytest.fixture(scope="module")
def weights_path(kind, tmp_path_factory):
    if kind == "adapter":
        return str(make_adapter(tmp_path_factory.mktemp("adapter") / "v1"))
    return str(tmp_path_factory.mktemp("weights") if kind == "fake" else TINY_AGENT)


def make_adapter(folder):
    from dart_gui.model.lora import LoraPolicy

    policy = LoraPolicy(TINY_AGENT, rank=4, alpha=4, targets=("q_proj", "up_proj"), device="cpu")
    for name, parameter in policy.network.named_parameters():
        if ".lora_B." in name:
            parameter.data.fill_(0.01)
    policy.save(folder)
    return folder


@pytest.fixture
def engine(kind, weights_path, request):
    if kind == "vllm":
        engine = request.getfixturevalue("vllm_engine")(policy_version=3, max_context=MAX_CONTEXT)
    elif kind == "fake":
        engine = FakeEngine(
            Path(weights_path),
            policy_version=3,
            max_context=MAX_CONTEXT,
            script=FakeScript(latency_s=0.02),
        )
    else:
        from dart_gui.rollout.engines.transformers_engine import TransformersEngine

        engine = TransformersEngine(
            Path(weights_path),
            policy_version=3,
            max_batch_size=4,
            max_context=MAX_CONTEXT,
            device="cpu",
            dtype="float32",
            threads=1,
        )
    yield engine
    engine.close()


def answer(engine, *args, **kwargs):
    return engine.submit(request(*args, **kwargs)).result(WAIT_S)


def test_lengths_agree_and_values_are_sane(engine):
    image = png(10)
    result = answer(engine, images=[image])
    assert result.prompt_ids
    assert 1 <= len(result.response_ids) <= 24
    assert len(result.response_ids) == len(result.rollout_logprobs) == len(result.entropies)
    assert all(logprob <= 0 for logprob in result.rollout_logprobs)
    assert all(entropy >= 0 for entropy in result.entropies)
    assert not set(result.response_ids) & set(result.masked_token_ids)
    assert result.image_hashes == [hashlib.sha256(image).hexdigest()]


def test_images_keep_their_order_and_repetitions(engine):
    a, b = png(1), png(2)
    result = answer(engine, images=[b, a, b])
    assert result.image_hashes == [hashlib.sha256(image).hexdigest() for image in (b, a, b)]


def test_a_reply_depends_on_the_seed_and_on_nothing_else(engine):
    # hot: a model that is sure of itself says the same with every seed
    first = answer(engine, seed=1, temperature=2.0)
    assert answer(engine, seed=1, temperature=2.0).response_ids == first.response_ids
    others = [answer(engine, seed=seed, temperature=2.0).response_ids for seed in range(2, 8)]
    assert any(ids != first.response_ids for ids in others)


def test_temperature_0_is_greedy(engine):
    replies = [answer(engine, temperature=0.0, seed=seed).response_ids for seed in (1, 2)]
    assert replies[0] == replies[1]


def test_max_tokens_ends_a_reply(engine):
    result = answer(engine, max_tokens=1)
    assert len(result.response_ids) == 1
    assert result.prompt_ids == answer(engine, max_tokens=2).prompt_ids


def test_requests_at_once_get_the_answers_that_they_get_alone(engine):
    texts = ["Click.", "Click the red button in the middle of the page.", "Type the word."] * 3
    alone = [answer(engine, text, seed=seed) for seed, text in enumerate(texts)]
    with ThreadPoolExecutor(4) as pool:
        futures = list(
            pool.map(lambda item: engine.submit(request(item[1], seed=item[0])), enumerate(texts))
        )
    for future, expected in zip(futures, alone, strict=True):
        result = future.result(WAIT_S)
        assert result.prompt_ids == expected.prompt_ids
        assert result.response_ids == expected.response_ids
        assert result.rollout_logprobs == pytest.approx(expected.rollout_logprobs, abs=1e-3)


def test_a_prompt_that_does_not_fit_is_a_context_length_error(engine):
    with pytest.raises(ContextLengthError):
        answer(engine, "click the button " * 2000)
    assert answer(engine).response_ids


def test_an_image_that_did_not_come_is_a_policy_error(engine):
    complete = request(images=[png(5)])
    lacking = EngineRequest(messages=complete.messages, images={}, sampling=complete.sampling)
    with pytest.raises(PolicyError):
        engine.submit(lacking).result(WAIT_S)
    assert answer(engine).response_ids


def test_an_image_that_cannot_be_decoded_is_a_policy_error(engine):
    with pytest.raises(PolicyError):
        answer(engine, images=[png(6)[:60]])
    assert answer(engine).response_ids


def test_new_weights_come_with_their_version(engine, weights_path):
    assert engine.policy_version == 3
    engine.load_weights(WeightsRef(policy_version=4, path=weights_path))
    assert engine.policy_version == 4
    assert answer(engine).response_ids


def test_weights_that_are_not_there_leave_the_old_ones(engine, tmp_path):
    before = answer(engine).response_ids
    with pytest.raises(DataError):
        engine.load_weights(WeightsRef(policy_version=4, path=str(tmp_path / "missing")))
    assert engine.policy_version == 3
    assert answer(engine).response_ids == before


def test_weights_are_refused_while_a_request_is_in_flight(engine, weights_path):
    future = engine.submit(request(max_tokens=24))
    with pytest.raises(PolicyError):
        engine.load_weights(WeightsRef(policy_version=4, path=weights_path))
    future.result(WAIT_S)
    engine.load_weights(WeightsRef(policy_version=4, path=weights_path))


def test_busy_seconds_grow_with_work(engine):
    before = engine.busy_s
    answer(engine)
    assert engine.busy_s > before


def test_the_script_of_the_fake_engine_goes_by_turns(tmp_path):
    (tmp_path / "fake_engine.json").write_text('{"replies": ["first", "second"]}')
    engine = FakeEngine(tmp_path)
    asked = request()
    assert engine.submit(asked).result(0).text == "first"
    for turn in ("second", "first"):
        asked.messages.extend(
            [{"role": "assistant", "content": "x"}, {"role": "user", "content": "go on"}]
        )
        assert engine.submit(asked).result(0).text == turn


def test_the_latency_of_the_fake_engine_is_scheduled(tmp_path):
    pending = []
    now = [100.0]
    engine = FakeEngine(
        tmp_path,
        script=FakeScript(latency_s=2.0),
        clock=lambda: now[0],
        schedule=lambda delay, action: pending.append((delay, action)),
    )
    futures = [engine.submit(request(seed=seed)) for seed in (1, 2)]
    assert [delay for delay, _ in pending] == [2.0, 2.0]
    now[0] += 2.0
    assert (futures[0].done(), engine.busy_s) == (False, 2.0)
    for _, action in pending:
        action()
    assert futures[0].result(0).text != futures[1].result(0).text
    now[0] += 5.0
    assert engine.busy_s == 2.0


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2000, 3), (3000, 2000)])
def test_a_picture_of_any_shape_costs_its_own_request_at_most(engine, size):
    buffer = io.BytesIO()
    Image.new("RGB", size, "white").save(buffer, "png")
    with contextlib.suppress(PolicyError):
        answer(engine, images=[buffer.getvalue()])
    assert answer(engine).response_ids


def test_a_cancelled_request_leaves_the_engine(engine, weights_path):
    futures = [engine.submit(request(f"Click {n}.", max_tokens=800)) for n in range(6)]
    for future in futures:
        future.cancel()
    deadline = time.monotonic() + WAIT_S
    while True:  # in flight until the engine has let go of them
        try:
            engine.load_weights(WeightsRef(policy_version=4, path=weights_path))
            break
        except PolicyError:
            assert time.monotonic() < deadline
    assert engine.policy_version == 4
    results = [engine.submit(request(seed=seed)) for seed in range(6)]  # every slot is free again
    assert all(result.result(WAIT_S).response_ids for result in results)


def test_a_cancelled_request_of_the_fake_engine_never_ends(tmp_path):
    pending = []
    engine = FakeEngine(
        tmp_path,
        script=FakeScript(latency_s=2.0),
        schedule=lambda _, action: pending.append(action),
    )
    gone, kept = engine.submit(request(seed=1)), engine.submit(request(seed=2))
    assert gone.cancel()
    with pytest.raises(PolicyError, match="1 requests are in flight"):
        engine.load_weights(WeightsRef(policy_version=1, path=str(tmp_path)))
    for action in pending:
        action()
    assert gone.cancelled()
    assert kept.result(0).text
    engine.load_weights(WeightsRef(policy_version=1, path=str(tmp_path)))
