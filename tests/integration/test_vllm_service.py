"""The whole service over vLLM servers of its own, configured as for UI-TARS but with the tiny agent:
rolling updates under load, and servers killed."""

import asyncio
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from dart_gui.config import load
from dart_gui.rollout.client import RolloutClient
from dart_gui.rollout.service import serve
from dart_gui.rollout.states import WorkerState
from dart_gui.types import SamplingParams, WeightsRef

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
TINY_AGENT = ROOT / "models" / "tiny-agent"
TOKEN = "a-token-of-this-test"
WAIT_S = 300


def children(pid):
    """All processes below ``pid``."""
    below = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            below.append((int(entry.name), int(fields[1])))
    found = {pid}
    for _ in range(10):
        found |= {child for child, parent in below if parent in found}
    return found - {pid}


def alive(pid):
    try:
        return (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split())[0] != "Z"
    except OSError:
        return False


def command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


async def until(condition, what):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited for {what}"
        await asyncio.sleep(0.05)


async def ask(client, number):
    messages = [{"role": "user", "content": f"Click button {number}."}]
    sampling = SamplingParams(temperature=1.0, max_tokens=16, seed=number)
    return await client.complete(messages, {}, sampling, trajectory_id=f"t{number % 5}")


async def test_updates_and_deaths_under_load(vllm_executable, vllm_args, vllm_env, tmp_path):
    weights = [WeightsRef(policy_version=0, path=str(TINY_AGENT))]
    for version in (1, 2):
        folder = tmp_path / f"v{version}"
        shutil.copytree(TINY_AGENT, folder)
        weights.append(WeightsRef(policy_version=version, path=str(folder)))
    overrides = {
        "model.path": str(TINY_AGENT),
        "model.dtype": "float32",
        "model.device": "cpu",
        "train.lora_rank": 0,  # whole weights: test_vllm_lora has the adapters
        "rollout.num_workers": 2,
        "rollout.max_context": 1024,
        "rollout.max_tokens": 32,
        "rollout.request_timeout_s": float(WAIT_S),
        "vllm.executable": vllm_executable,
        "vllm.args": vllm_args,
        "vllm.env": vllm_env,
    }
    text = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    config = load(ROOT / "configs" / "uitars-7b.toml", text)
    completions, stop = [], asyncio.Event()

    async def episode(client, first):
        number = first
        while not stop.is_set():
            completions.append(await ask(client, number))
            number += 100

    async with (
        serve(config, token=TOKEN) as service,
        RolloutClient(service.url, TOKEN, timeout_s=2 * WAIT_S) as client,
    ):
        slots = service.fleet.slots
        episodes = [asyncio.create_task(episode(client, first)) for first in range(6)]
        await until(lambda: len(completions) > 6, "answers")

        await client.publish(weights[1])
        await until(lambda: [slot.policy_version for slot in slots] == [1, 1], "version 1")
        assert [slot.restarts for slot in slots] == [0, 0]
        before = len(completions)
        await until(lambda: len(completions) > before + 6, "answers at version 1")

        # the engine of one server dies: its requests are answered elsewhere, and it comes back
        victim = service.fleet.process(slots[0])
        family = children(victim.pid)
        engine = next(pid for pid in family if "EngineCore" in command_of(pid))
        os.kill(engine, signal.SIGKILL)
        await until(lambda: slots[0].restarts == 1, "the worker to be given up")
        await until(lambda: not any(map(alive, family)), "the end of its processes")
        assert slots[1].state is WorkerState.READY
        before = len(completions)
        await until(lambda: len(completions) > before + 3, "answers by the other worker")
        await client.publish(weights[2])  # while one is down: it comes up with the newest
        await until(lambda: [slot.policy_version for slot in slots] == [2, 2], "version 2")
        await until(lambda: [slot.state for slot in slots] == ["ready", "ready"], "both workers")
        stop.set()
        await asyncio.gather(*episodes)
        family = {pid for slot in slots for pid in children(service.fleet.process(slot).pid)}

    await until(lambda: not any(map(alive, family)), "the end of the servers")
    assert {completion.policy_version for completion in completions} >= {0, 1, 2}
    assert len({completion.sampling.seed for completion in completions}) == len(completions)
