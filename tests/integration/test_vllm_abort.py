"""An update that takes a long reply from a real vLLM server (rollout.update_mode = "abort")."""

import asyncio
import re
import shutil
import time
from pathlib import Path

import aiohttp
import pytest

from dart_gui.config import from_dict
from dart_gui.model.folder import read_token_facts
from dart_gui.rollout.client import RolloutClient
from dart_gui.rollout.service import serve
from dart_gui.rollout.states import WorkerState
from dart_gui.types import SamplingParams, WeightsRef

pytestmark = pytest.mark.vllm
TINY_AGENT = Path(__file__).resolve().parents[2] / "models" / "tiny-agent"
TOKEN = "a-token-of-this-test"
WAIT_S = 300
LOADING = WorkerState.LOADING
LONG = 900  # tokens; half a minute on two busy cores


def endless(folder):
    """The tiny agent, without the end of its replies: greedy decoding never picks it."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(TINY_AGENT, folder)
    tensors = load_file(folder / "model.safetensors")
    for token in read_token_facts(TINY_AGENT).eos_ids:
        tensors["lm_head.weight"][token] = 0.0
    moved = {name: tensor * 1.01 for name, tensor in tensors.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def config(model_path, url):
    tree = {
        "model": {"path": model_path, "device": "cpu"},
        "rollout": {
            "engine": "vllm",
            "num_workers": 1,
            "update_mode": "abort",
            "max_context": 1024,
            "max_tokens": LONG,
            "max_batch_size": 4,
            "request_timeout_s": WAIT_S,
        },
        "vllm": {"urls": [url], "start_timeout_s": WAIT_S},
    }
    return from_dict(tree, source="test")


async def ask(client, number, max_tokens):
    messages = [{"role": "user", "content": f"Click button {number}."}]
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, seed=number)
    return await client.complete(messages, {}, sampling, trajectory_id=f"t{number}")


class Counter:
    """Tokens that the server has generated since its start, by its own count."""

    def __init__(self, url):
        self._url = url

    async def __call__(self):
        connector = aiohttp.UnixConnector(path=self._url.removeprefix("unix:"))
        base, connector = (
            ("http://vllm", connector) if self._url.startswith("unix:") else (self._url, None)
        )
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.get(f"{base}/metrics") as response,
        ):
            text = await response.text()
        found = re.findall(r"^vllm:generation_tokens_total\{[^}]*\} ([0-9.e+]+)$", text, re.M)
        return int(sum(map(float, found)))


async def until(condition, what):
    deadline = time.monotonic() + WAIT_S
    while not await condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        await asyncio.sleep(0.02)


async def test_a_long_reply_is_dropped_and_asked_for_anew(vllm_url, tmp_path):
    generated = Counter(vllm_url)
    weights = WeightsRef(policy_version=1, path=str(TINY_AGENT))
    async with (
        serve(config(endless(tmp_path / "endless"), vllm_url), token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=WAIT_S) as client,
    ):
        (slot,) = service.fleet.slots
        first = await generated()
        asked = [asyncio.create_task(ask(client, number, LONG)) for number in range(3)]

        async def under_way():
            return await generated() > first + 60

        await until(under_way, "tokens of the old weights")
        dropped = asyncio.Event()
        slot.listeners.append(lambda: dropped.set() if slot.state is LOADING else None)
        await client.publish(weights)
        await asyncio.wait_for(dropped.wait(), WAIT_S)
        at_the_drop = await generated()

        async def updated():
            return slot.policy_version == 1

        await until(updated, "the update")
        answers = await asyncio.gather(*asked)
        assert [answer.sampling.seed for answer in answers] == [0, 1, 2]
        assert {answer.policy_version for answer in answers} == {1}
        lengths = [len(answer.response_ids) for answer in answers]
        ends = [answer.finish_reason for answer in answers]
        assert all((end == "stop") == (n < LONG) for end, n in zip(ends, lengths, strict=True))
        assert (slot.restarts, slot.num_in_flight, slot.num_completed) == (0, 0, 3)

        # Nothing of the dropped replies goes on: the server generates what is asked, and no more.
        async def steady():
            count = await generated()
            await asyncio.sleep(0.5)
            return await generated() == count

        await until(steady, "the end of what was generated")
        before = await generated()
        assert before - at_the_drop - sum(lengths) < LONG / 9, "a dropped one went on"
        reply = await ask(client, 7, 32)

        async def counted():
            return await generated() == before + len(reply.response_ids)

        await until(counted, "the tokens of one reply, and none besides")
