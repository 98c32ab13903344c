"""Recorded episodes asked of the rollout service over real vLLM servers, step after step."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from benchmarks.prefix.episodes import RecordedEpisode, prompts
from benchmarks.prefix.figures import STICKY, Arm, Asked, Replay, replay_of
from benchmarks.vllm import ARGS, ENV
from dart_gui.agent.agent import Agent, Prompt
from dart_gui.config import Config, from_dict
from dart_gui.rollout.client import RolloutClient
from dart_gui.rollout.engines.vllm_api import VllmApi
from dart_gui.rollout.engines.vllm_server import ModelSettings, VllmServer, VllmSettings
from dart_gui.rollout.service import serve
from dart_gui.types import SamplingParams

MAX_CONTEXT = 2048
MAX_BATCH_SIZE = 8
TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    model: Path
    vllm: str
    num_servers: int
    urls: tuple[str, ...]  # of servers that run already, instead of starting some
    clients: int  # episodes at a time
    pause_s: float  # between an answer and the next step


class Bench:
    """The service, and the servers behind it, which are asked for their counters themselves."""

    def __init__(self, settings: BenchSettings, client: RolloutClient, urls: Sequence[str]) -> None:
        self._settings = settings
        self._client = client
        self._urls = urls

    async def replay(
        self,
        arm: Arm,
        episodes: Sequence[tuple[RecordedEpisode, Sequence[Prompt]]],
        *,
        key: str,
    ) -> Replay:
        """All episodes once; their prompts are given, one a step. ``key`` keeps the trajectories apart
        from those of other replays."""
        await self._forget()
        before = await self._prefix_counts()
        began = time.monotonic()
        asked: list[Asked] = []
        todo = iter(episodes)

        async def play() -> None:
            for episode, shown in todo:  # one iterator for all clients
                # The router knows a trajectory by its id; a request without one goes where least is.
                name = f"{key}/{episode.name}" if arm.routing == STICKY else ""
                for step, prompt in zip(episode.steps, shown, strict=True):
                    asked.append(await self._ask(prompt, step.num_tokens, name, seed=len(asked)))
                    await asyncio.sleep(self._settings.pause_s)

        await asyncio.gather(*(play() for _ in range(self._settings.clients)))
        seconds = time.monotonic() - began
        after = await self._prefix_counts()
        looked_up, found = (b - a for a, b in zip(before, after, strict=True))
        return replay_of(asked, seconds=seconds, num_looked_up=looked_up, num_found=found)

    async def _ask(self, prompt: Prompt, max_tokens: int, name: str, *, seed: int) -> Asked:
        began = time.monotonic()
        sampling = SamplingParams(temperature=1.0, max_tokens=max_tokens, seed=seed)
        completion = await self._client.complete(
            prompt.messages, prompt.images, sampling, trajectory_id=name
        )
        return Asked(num_prompt_tokens=len(completion.prompt_ids), seconds=time.monotonic() - began)

    async def _forget(self) -> None:
        """Empty what a replay could find of the one before it: a pause clears the caches of images,
        in all processes of a server at once, and the prefix cache, which is then asked to."""
        for url in self._urls:
            async with _session(url) as http:
                await _post(http, "/pause?mode=abort")
                await _post(http, "/resume")
                answer = await _post(http, "/reset_prefix_cache")
                if answer.get("success") is not True:
                    raise RuntimeError(f"{url} did not reset its prefix cache: {answer}")

    async def _prefix_counts(self) -> tuple[int, int]:
        """Prompt tokens looked up and found, by all servers since their start."""
        looked_up = found = 0
        for url in self._urls:
            api = VllmApi(url, timeout_s=TIMEOUT_S)
            try:
                load = await api.load()
            finally:
                await api.close()
            looked_up += load.prefix_queries
            found += load.prefix_hits
        return looked_up, found


@asynccontextmanager
async def open_bench(settings: BenchSettings) -> AsyncIterator[Bench]:
    """The service, over servers that it adopts: so they can be asked past it."""
    model = ModelSettings(
        folder=settings.model,
        max_context=MAX_CONTEXT,
        max_batch_size=MAX_BATCH_SIZE,
        dtype="float32",
        threads=1,
    )
    async with AsyncExitStack() as stack:
        urls = list(settings.urls)
        for _ in range(0 if urls else settings.num_servers):
            server = VllmServer(VllmSettings(executable=settings.vllm, args=ARGS, env=ENV))
            stack.callback(server.close)
            server.start(model)
            urls.append(f"unix:{server.socket}")
        token = secrets.token_urlsafe(32)
        config = _config(settings.model, urls)
        running = await stack.enter_async_context(serve(config, token=token))
        client = RolloutClient(running.url, token, timeout_s=TIMEOUT_S)
        yield Bench(settings, await stack.enter_async_context(client), urls)


def all_prompts(
    episodes: Sequence[RecordedEpisode], agents: Mapping[str, Agent]
) -> dict[str, list[tuple[RecordedEpisode, list[Prompt]]]]:
    """By history rule; rendered before anything is timed."""
    return {
        trim: [(episode, list(prompts(episode, agent))) for episode in episodes]
        for trim, agent in agents.items()
    }


def turns(arms: Sequence[Arm], num_rounds: int) -> Iterator[tuple[int, Arm]]:
    """Every round has each arm once, and each time another one is first."""
    for number in range(num_rounds):
        first = number % len(arms)
        for arm in (*arms[first:], *arms[:first]):
            yield number, arm


def _config(model: Path, urls: Sequence[str]) -> Config:
    tree = {
        "model": {"path": str(model), "device": "cpu"},
        "rollout": {
            "engine": "vllm",
            "num_workers": len(urls),
            "max_tokens": 64,
            "max_context": MAX_CONTEXT,
            "max_batch_size": MAX_BATCH_SIZE,
            "request_timeout_s": TIMEOUT_S,
            "health_interval_s": 60.0,
        },
        "vllm": {"urls": list(urls), "top_logprobs": 1, "start_timeout_s": TIMEOUT_S},
    }
    return from_dict(tree, source="benchmarks/prefix")


def _session(url: str) -> aiohttp.ClientSession:
    if not url.startswith("unix:"):
        return aiohttp.ClientSession(url)
    connector = aiohttp.UnixConnector(path=url.removeprefix("unix:"))
    return aiohttp.ClientSession("http://vllm", connector=connector)


async def _post(http: aiohttp.ClientSession, path: str) -> dict[str, object]:
    async with http.post(path) as response:
        response.raise_for_status()
        return dict(await response.json())
