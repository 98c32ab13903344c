import base64
import io
import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dart_gui.rollout.chat import (
    ChatDefaults,
    ChatRequest,
    completion_body,
    parse_request,
)
from dart_gui.rollout.client import parse_completion
from dart_gui.rollout.engines.base import EngineResult
from dart_gui.rollout.httpd import ApiError
from dart_gui.rollout.images import image_hash
from dart_gui.types import SamplingParams

DEFAULTS = ChatDefaults(
    model="tiny", temperature=0.7, max_tokens=32, max_context=512, draw_seed=lambda: 99
)
HASH = "ab" * 32
HELLO = [{"role": "user", "content": "hello"}]


def parse(**body):
    return parse_request({"messages": HELLO, **body}, DEFAULTS)


def image_message(url):
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def test_defaults_fill_what_is_left_out():
    request, inline = parse(model="whatever", temperature=None)
    assert request.sampling == SamplingParams(temperature=0.7, max_tokens=32, seed=99)
    assert (request.logprobs, request.return_token_ids, inline) == (False, False, {})


def test_parameters_are_taken():
    request, _ = parse(
        temperature=0, max_completion_tokens=5, seed=3, logprobs=True, return_token_ids=True
    )
    assert request.sampling == SamplingParams(temperature=0.0, max_tokens=5, seed=3)
    assert request.logprobs
    assert request.return_token_ids


def test_values_that_change_nothing_are_taken():
    parse(n=1, top_p=1.0, top_k=-1, min_p=0, presence_penalty=0.0, frequency_penalty=0)
    parse(stop=None, stream=False, repetition_penalty=1.0, tools=[], logit_bias={}, user="me")


@pytest.mark.parametrize(
    "body",
    [
        {"n": 2},
        {"top_p": 0.9},
        {"top_k": 40},
        {"min_p": 0.1},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -1},
        {"repetition_penalty": 1.1},
        {"stop": ["\n"]},
        {"stream": True},
        {"top_logprobs": 3},
        {"logit_bias": {"5": -100}},
        {"typical_p": 0.5},
        {"temperature": -1},
        {"temperature": 0.001},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"temperature": True},
        {"temperature": 10**400},
        {"max_tokens": 0},
        {"max_tokens": 513},
        {"max_tokens": 2.5},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": True},
        {"logprobs": "yes"},
        {"messages": None},
        {"messages": []},
        {"messages": "hello"},
        {"messages": ["hello"]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": ["user"], "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": "half a pair: \ud800"}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "\udfff"}]}]},
        {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
        {"messages": [{"role": "user", "content": ["x"]}]},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {"messages": image_message("sha256:xyz")},
        {"messages": image_message("sha256:" + "AB" * 32)},
        {"messages": image_message("http://169.254.169.254/")},
        {"messages": image_message("data:image/png;base64,AAAA")},
        {"messages": image_message(7)},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    ],
)
def test_refused_with_400(body):
    with pytest.raises(ApiError) as refusal:
        parse(**body)
    assert refusal.value.status == 400
    assert len(str(refusal.value)) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*"abc", "messages", "seed", "stop", "n", "top_p"]), JSON))
def test_no_body_does_more_than_be_refused(body):
    with suppress(ApiError):
        parse_request(body, DEFAULTS)


def test_data_urls_become_hashes():
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "png")
    png = buffer.getvalue()
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    request, inline = parse(messages=image_message(url))
    assert inline == {image_hash(png): png}
    assert request.image_hashes == [image_hash(png)]
    assert request.messages == image_message(f"sha256:{image_hash(png)}")


def test_hashes_keep_their_order_and_repetitions():
    other = "cd" * 32
    messages = [
        *image_message(f"sha256:{HASH}"),
        {"role": "assistant", "content": "ok"},
        *image_message(f"sha256:{other}"),
        *image_message(f"sha256:{HASH}"),
    ]
    request, _ = parse(messages=messages)
    assert request.image_hashes == [HASH, other, HASH]
    assert request.messages == messages


FLOATS = st.floats(-50, 0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), FLOATS, FLOATS), max_size=8), st.integers(0, 9))
def test_an_answer_survives_the_wire_bit_for_bit(tokens, version):
    sampling = SamplingParams(temperature=0.3, max_tokens=8, seed=2**62 + 1)
    result = EngineResult(
        text="Thought: é\n",
        prompt_ids=[5, 6],
        response_ids=[token for token, _, _ in tokens],
        rollout_logprobs=[logprob for _, logprob, _ in tokens],
        entropies=[-entropy for _, _, entropy in tokens],
        image_hashes=[HASH],
        finish_reason="length",
        masked_token_ids=[1],
    )
    request = ChatRequest(
        messages=HELLO,
        image_hashes=[HASH],
        sampling=sampling,
        model="tiny",
        logprobs=True,
        return_token_ids=True,
    )
    body = completion_body(result, request, policy_version=version, worker_id="w", now=1.5)
    completion = parse_completion(json.loads(json.dumps(body)))
    for name in EngineResult.__slots__:
        assert getattr(completion, name) == getattr(result, name)
    assert (completion.policy_version, completion.worker_id) == (version, "w")
    assert completion.sampling == sampling
    assert body["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": len(tokens),
        "total_tokens": 2 + len(tokens),
    }
