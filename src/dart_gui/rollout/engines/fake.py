"""A scripted engine for tests and dry runs: no model, the same contract as the real ones.

Its model folder may hold ``fake_engine.json``: ``{"replies": [...], "latency_s": 0.05}``, and
``"fault": "lengths"`` to answer with ids that lack their log-probabilities. The reply
of a turn is the one at the number of assistant messages in the prompt, from the start again at the
end of the script. Without a script it clicks somewhere that the seed decides, and its thought names
the policy versions at the beginning and at the end of the request, so that a mixture would show.
"""

from __future__ import annotations

import json
import random
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dart_gui.errors import ContextLengthError, DataError, PolicyError
from dart_gui.rollout.engines.base import EngineLoad, EngineRequest, EngineResult
from dart_gui.rollout.engines.busy import BusyTime
from dart_gui.rollout.images import check_png
from dart_gui.types import WeightsRef

SCRIPT_FILE = "fake_engine.json"
IMAGE_TOKEN = 1
IMAGE_TOKENS = 4  # prompt tokens of one screenshot
END_TOKEN = 2
_FIRST_TEXT_TOKEN = 100
_CHARS_PER_TOKEN = 4

Schedule = Callable[[float, Callable[[], None]], None]


def run_later(delay_s: float, action: Callable[[], None]) -> None:
    timer = threading.Timer(delay_s, action)
    timer.daemon = True
    timer.start()


@dataclass(frozen=True, slots=True)
class FakeScript:
    replies: tuple[str, ...] = ()
    latency_s: float = 0.0
    fault: str = ""

    @classmethod
    def read(cls, folder: Path) -> FakeScript:
        """Raises:
        DataError: the script is there but cannot be read.
        """
        path = folder / SCRIPT_FILE
        if not path.exists():
            return cls()
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            replies = tuple(tree.get("replies", ()))
            return cls(replies, float(tree.get("latency_s", 0.0)), str(tree.get("fault", "")))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not a script of the fake engine: {error}") from None


class FakeEngine:
    """Answers each request after the script's latency, through ``schedule``."""

    def __init__(
        self,
        model_dir: Path,
        *,
        policy_version: int = 0,
        max_context: int = 2048,
        script: FakeScript | None = None,
        clock: Callable[[], float] = time.monotonic,
        schedule: Schedule = run_later,
    ) -> None:
        self._script = FakeScript.read(model_dir) if script is None else script
        self._policy_version = policy_version
        self._max_context = max_context
        self._clock = clock
        self._schedule = schedule
        self._lock = threading.Lock()
        self._busy = BusyTime(clock)
        self._closed = False

    @property
    def policy_version(self) -> int:
        return self._policy_version

    @property
    def fingerprint(self) -> None:
        return None

    @property
    def load(self) -> EngineLoad:
        return EngineLoad()

    @property
    def busy_s(self) -> float:
        return self._busy.total_s

    def submit(self, request: EngineRequest) -> Future[EngineResult]:
        future: Future[EngineResult] = Future()
        try:
            self._check_open()
            prompt_ids, hashes = _tokenize_prompt(request)
            if len(prompt_ids) + request.sampling.max_tokens > self._max_context:
                raise ContextLengthError(
                    f"a prompt of {len(prompt_ids)} tokens and a reply of up to "
                    f"{request.sampling.max_tokens} exceed the context of {self._max_context}"
                )
        except PolicyError as error:
            future.set_exception(error)
            return future
        self._busy.enter()
        future.add_done_callback(self._leave_if_cancelled)
        version = self._policy_version
        finish = lambda: self._finish(future, request, prompt_ids, hashes, version)  # noqa: E731
        if self._script.latency_s > 0:
            self._schedule(self._script.latency_s, finish)
        else:
            finish()
        return future

    def load_weights(self, weights: WeightsRef) -> None:
        self._busy.check_drained()
        folder = Path(weights.path)
        if not folder.is_dir():
            raise DataError(f"the weights {folder} are not a folder")
        self._script = FakeScript.read(folder)
        self._policy_version = weights.policy_version

    def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise PolicyError("the engine is closed")

    def _finish(
        self,
        future: Future[EngineResult],
        request: EngineRequest,
        prompt_ids: list[int],
        hashes: list[str],
        version: int,
    ) -> None:
        seen = zlib.crc32(repr(prompt_ids).encode() + "".join(hashes).encode())
        seed = request.sampling.seed if request.sampling.temperature > 0 else 0
        rng = random.Random(f"{seen}/{seed}")
        reply = self._reply(request.messages, version, rng)
        chunks = list(_chunks(reply))[: request.sampling.max_tokens]
        ids = [_token(chunk) for chunk in chunks]
        stopped = len(chunks) < request.sampling.max_tokens and "".join(chunks) == reply
        ids += [END_TOKEN] if stopped else []
        result = EngineResult(
            text="".join(chunks),
            prompt_ids=prompt_ids,
            response_ids=ids,
            rollout_logprobs=[-rng.random() for _ in ids][self._script.fault == "lengths" :],
            entropies=[rng.random() for _ in ids],
            image_hashes=hashes,
            finish_reason="stop" if stopped else "length",
            masked_token_ids=[IMAGE_TOKEN],
        )
        if future.set_running_or_notify_cancel():
            # leave first: whoever sees the result may load weights at once
            self._busy.leave()
            future.set_result(result)

    def _leave_if_cancelled(self, future: Future[EngineResult]) -> None:
        if future.cancelled():
            self._busy.leave()

    def _reply(self, messages: list[dict[str, Any]], version: int, rng: random.Random) -> str:
        if self._script.replies:
            turn = sum(message["role"] == "assistant" for message in messages)
            return self._script.replies[turn % len(self._script.replies)]
        x, y = rng.randrange(160), rng.randrange(210)
        return (
            f"Thought: versions {version} to {self._policy_version}.\n"
            f"Action: click(start_box='<|box_start|>({x},{y})<|box_end|>')"
        )


def _chunks(text: str) -> Iterator[str]:
    return (text[at : at + _CHARS_PER_TOKEN] for at in range(0, len(text), _CHARS_PER_TOKEN))


def _token(chunk: str) -> int:
    return _FIRST_TEXT_TOKEN + zlib.crc32(chunk.encode()) % 1000


def _tokenize_prompt(request: EngineRequest) -> tuple[list[int], list[str]]:
    ids: list[int] = []
    hashes: list[str] = []
    for message in request.messages:
        content = message["content"]
        parts: Any = [{"type": "text", "text": content}] if isinstance(content, str) else content
        ids.append(_token(message["role"]))
        for part in parts:
            if part["type"] == "text":
                ids += map(_token, part["text"].split())
            else:
                hashes.append(_check_image(request, part["image_url"]["url"]))
                ids += [IMAGE_TOKEN] * IMAGE_TOKENS
    return ids, hashes


def _check_image(request: EngineRequest, url: str) -> str:
    key = url.removeprefix("sha256:")
    try:
        check_png(request.images[key])
    except KeyError:
        raise PolicyError(f"the prompt names the image {url}, which did not come with it") from None
    except ValueError as error:
        raise PolicyError(f"the image {url} is {error}") from None
    return key
