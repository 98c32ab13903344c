"""Engine ``transformers``: continuous batching over the Hugging Face model, in one thread.

Each turn of the loop admits waiting requests into free slots (prefill, batched), then decodes one
token for every running sequence. A sequence leaves as soon as it ends, so short replies do not wait
for long ones. What is sampled from, and what the log-probabilities are of, is one distribution:
softmax(logits / temperature) without the masked ids.
"""

from __future__ import annotations

import logging
import os
import queue
import random
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dart_gui.byte_cache import ByteCache
from dart_gui.errors import ContextLengthError, DartError, PolicyError
from dart_gui.model.policy_model import PIXEL_CACHE_BYTES, Pixels, PolicyModel, image_hashes
from dart_gui.rollout.engines.base import EngineLoad, EngineRequest, EngineResult
from dart_gui.rollout.engines.kv_cache import SlotCache
from dart_gui.types import WeightsRef

log = logging.getLogger(__name__)

FEATURE_CACHE_BYTES = 512 << 20
PREFILL_TOKENS = 8192


@dataclass(slots=True)
class _Sequence:
    """A request on its way through the engine."""

    request: EngineRequest
    future: Future[EngineResult]
    prompt_ids: list[int]
    hashes: list[str]
    grids: list[tuple[int, int, int]]  # of the screenshots, in patches
    slot: int
    next_position: int  # rotary position of the next token, equal in all three axes
    rng: random.Random
    response_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    ended: bool = False  # answered or cancelled; its slot is free again

    @property
    def num_cached(self) -> int:
        """Tokens in the cache: the prompt, and the response but for its newest token."""
        return len(self.prompt_ids) + max(0, len(self.response_ids) - 1)


class TransformersEngine:
    """See :class:`dart_gui.rollout.engines.base.Engine`."""

    def __init__(
        self,
        model_dir: Path,
        *,
        policy_version: int,
        max_batch_size: int,
        max_context: int,
        device: str = "auto",
        dtype: str = "float32",
        threads: int = 1,
    ) -> None:
        torch.set_num_threads(threads)
        self._policy = PolicyModel(model_dir, device=device, dtype=dtype)
        self._version = policy_version
        self._max_context = max_context
        self._cache = SlotCache(
            self._policy.network.config.text_config,
            max_slots=max_batch_size,
            max_context=max_context,
            like=self._policy.network.lm_head.weight,
        )
        self._free = list(range(max_batch_size))
        self._running: list[_Sequence] = []
        self._waiting: queue.SimpleQueue[tuple[EngineRequest, Future[EngineResult]] | None] = (
            queue.SimpleQueue()
        )
        self._num_open = 0
        self._lock = threading.Lock()
        self._pixels = ByteCache[Pixels](PIXEL_CACHE_BYTES, lambda pixels: pixels.num_bytes)
        self._features = ByteCache[Tensor](FEATURE_CACHE_BYTES, lambda features: features.nbytes)
        self._busy_s = 0.0
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    @property
    def policy_version(self) -> int:
        return self._version

    @property
    def fingerprint(self) -> None:
        return None

    @property
    def load(self) -> EngineLoad:
        return EngineLoad()

    @property
    def busy_s(self) -> float:
        return self._busy_s

    def submit(self, request: EngineRequest) -> Future[EngineResult]:
        future: Future[EngineResult] = Future()
        with self._lock:
            self._num_open += 1
        self._waiting.put((request, future))
        return future

    def _leave(self) -> None:
        """Before a result is seen: whoever sees it may load weights at once. And not before the loop
        has let go of the request, which for a cancelled one is later than its future says."""
        with self._lock:
            self._num_open -= 1

    def load_weights(self, weights: WeightsRef) -> None:
        with self._lock:
            if self._num_open:
                raise PolicyError(
                    f"weights {weights.policy_version} came while {self._num_open} requests were in "
                    "flight: drain the worker first"
                )
            self._policy.load_weights(Path(weights.path))
            self._features.clear()
            self._version = weights.policy_version

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(timeout=10)

    # --- the loop, in the engine's thread ---------------------------------------------------

    def _loop(self) -> None:
        try:
            while (arrived := self._take_waiting(block=not self._running)) is not None:
                started = time.perf_counter()
                with torch.inference_mode():
                    if arrived:
                        self._admit(arrived)
                    self._drop_cancelled()
                    if self._running:
                        self._decode()
                self._busy_s += time.perf_counter() - started
        except BaseException:
            # boundary: a model that failed in mid-batch is in an unknown state. The process ends, its
            # requests are sent again elsewhere, and the service starts it anew.
            log.exception("the engine failed")
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    def _take_waiting(
        self, *, block: bool
    ) -> list[tuple[EngineRequest, Future[EngineResult]]] | None:
        """Requests for the free slots; None when the engine closes."""
        taken: list[tuple[EngineRequest, Future[EngineResult]]] = []
        while len(taken) < len(self._free):
            try:
                item = self._waiting.get(block=block and not taken)
            except queue.Empty:
                break
            if item is None:
                return None
            taken.append(item)
        return taken

    def _admit(self, arrived: list[tuple[EngineRequest, Future[EngineResult]]]) -> None:
        batch: list[_Sequence] = []
        for request, future in arrived:
            if future.cancelled():
                self._leave()
                continue
            try:
                batch.append(self._prepare(request, future))
            except DartError as error:
                self._leave()
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
        # Prompts of like length share a pass: padding is work for nothing.
        batch.sort(key=lambda sequence: len(sequence.prompt_ids))
        while batch:
            count = max(1, PREFILL_TOKENS // len(batch[-1].prompt_ids))
            batch, now = batch[:-count], batch[-count:]
            self._prefill(now)

    def _drop_cancelled(self) -> None:
        for sequence in self._running:
            if sequence.future.cancelled():
                self._end(sequence)
        self._running = [sequence for sequence in self._running if not sequence.ended]

    def _end(self, sequence: _Sequence) -> None:
        sequence.ended = True
        self._free.append(sequence.slot)
        self._leave()

    def _prepare(self, request: EngineRequest, future: Future[EngineResult]) -> _Sequence:
        hashes = image_hashes(request.messages)
        missing = [name for name in hashes if name not in request.images]
        if missing:
            raise PolicyError(f"the request names images that did not come with it: {missing}")
        pixels = {name: self._image_pixels(name, request.images[name]) for name in hashes}
        prompt = self._policy.render(
            request.messages, {name: image.grid for name, image in pixels.items()}
        )
        needed = len(prompt.prompt_ids) + request.sampling.max_tokens
        if needed > self._max_context:
            raise ContextLengthError(
                f"a prompt of {len(prompt.prompt_ids)} tokens and {request.sampling.max_tokens} to "
                f"come exceed rollout.max_context = {self._max_context}"
            )
        return _Sequence(
            request=request,
            future=future,
            prompt_ids=prompt.prompt_ids,
            hashes=prompt.image_hashes,
            grids=[pixels[name].grid for name in prompt.image_hashes],
            slot=self._free.pop(),
            next_position=0,
            rng=random.Random(request.sampling.seed),
        )

    def _image_pixels(self, name: str, png: bytes) -> Pixels:
        return self._pixels.get_or(name, lambda: self._policy.pixels(png))

    def _image_features(self, batch: Sequence[_Sequence]) -> dict[str, Tensor]:
        """Features of all images of the batch; each is encoded once per policy version."""
        names = {name: None for sequence in batch for name in sequence.hashes}
        found = {name: self._features.get(name) for name in names}
        new = [name for name, features in found.items() if features is None]
        pixels = [self._image_pixels(name, self._find_png(batch, name)) for name in new]
        encoded = dict(zip(new, self._policy.encode_images(pixels), strict=True))
        for name, features in encoded.items():
            # A copy: a part of the batch's features would keep all of them in memory.
            self._features.put(name, features.clone())
        return {
            name: features for name, features in (found | encoded).items() if features is not None
        }

    @staticmethod
    def _find_png(batch: Sequence[_Sequence], name: str) -> bytes:
        return next(s.request.images[name] for s in batch if name in s.request.images)

    def _prefill(self, batch: list[_Sequence]) -> None:
        policy, device = self._policy, self._policy.device
        features = self._image_features(batch)
        lengths = [len(sequence.prompt_ids) for sequence in batch]
        length = max(lengths)
        hidden_size = policy.network.config.text_config.hidden_size
        embeds = torch.zeros(
            len(batch), length, hidden_size, dtype=policy.network.dtype, device=device
        )
        positions = torch.zeros(3, len(batch), length, dtype=torch.long, device=device)
        for row, sequence in enumerate(batch):
            ids = torch.tensor(sequence.prompt_ids, device=device)
            images = [features[name] for name in sequence.hashes]
            embeds[row, : len(ids)] = policy.embed(ids, len(ids), images)
            positions[:, row, : len(ids)] = policy.positions(ids, len(ids), sequence.grids)
            sequence.next_position = int(positions[:, row, : len(ids)].max()) + 1
        hidden = self._forward(batch, embeds, positions, starts=[0] * len(batch))
        last = hidden[torch.arange(len(batch)), torch.tensor(lengths) - 1]
        self._running += batch
        self._sample(batch, last)

    def _decode(self) -> None:
        """One token for every running sequence."""
        batch, device = self._running, self._policy.device
        newest = torch.tensor([sequence.response_ids[-1] for sequence in batch], device=device)
        embeds = self._policy.text.embed_tokens(newest)[:, None]
        position = torch.tensor([sequence.next_position for sequence in batch], device=device)
        positions = position[None, :, None].expand(3, -1, -1)
        hidden = self._forward(batch, embeds, positions, [s.num_cached for s in batch])
        for sequence in batch:
            sequence.next_position += 1
        self._sample(batch, hidden[:, 0])

    def _forward(
        self, batch: list[_Sequence], embeds: Tensor, positions: Tensor, starts: list[int]
    ) -> Tensor:
        device = self._policy.device
        mask = self._cache.select(
            torch.tensor([sequence.slot for sequence in batch], device=device),
            torch.tensor(starts, device=device),
            embeds.shape[1],
        )
        output = self._policy.text(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask={"full_attention": mask},
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.last_hidden_state

    def _sample(self, batch: list[_Sequence], hidden: Tensor) -> None:
        """Draw the next token of each sequence from hidden [B, H]; end the sequences that are done."""
        logits = self._policy.network.lm_head(hidden)
        # Greedy replies are scored under temperature 1: an argmax has no density of its own.
        temperature = [s.request.sampling.temperature or 1.0 for s in batch]
        logprobs = self._policy.log_softmax(
            logits / torch.tensor(temperature, device=logits.device, dtype=logits.dtype)[:, None],
            1.0,
            self._policy.masked_token_ids,
        )
        probs = logprobs.exp()
        entropies = -(probs * logprobs.masked_fill(probs == 0, 0.0)).sum(-1)
        chosen = self._draw(batch, probs)
        picked = logprobs.gather(1, chosen[:, None])[:, 0]
        for sequence, token, logprob, entropy in zip(
            batch, chosen.tolist(), picked.tolist(), entropies.tolist(), strict=True
        ):
            sequence.response_ids.append(token)
            sequence.logprobs.append(logprob)
            sequence.entropies.append(entropy)
            if token in self._policy.eos_ids:
                self._finish(sequence, "stop")
            elif len(sequence.response_ids) >= sequence.request.sampling.max_tokens:
                self._finish(sequence, "length")
        self._running = [sequence for sequence in self._running if not sequence.ended]

    @staticmethod
    def _draw(batch: list[_Sequence], probs: Tensor) -> Tensor:
        """Token ids [B]. Each sequence has its own generator, so a reply depends on its seed and not
        on what it was batched with (but for rounding)."""
        cumulative = probs.double().cumsum(-1)
        uniform = torch.tensor([s.rng.random() for s in batch], dtype=torch.float64)
        threshold = uniform.to(probs.device)[:, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, threshold, right=True)[:, 0]
        drawn = drawn.clamp(max=probs.shape[-1] - 1)
        greedy = torch.tensor([s.request.sampling.temperature == 0 for s in batch])
        return torch.where(greedy.to(probs.device), probs.argmax(-1), drawn)

    def _finish(self, sequence: _Sequence, reason: Literal["stop", "length"]) -> None:
        self._end(sequence)
        result = EngineResult(
            text=self._policy.decode(sequence.response_ids),
            prompt_ids=sequence.prompt_ids,
            response_ids=sequence.response_ids,
            rollout_logprobs=sequence.logprobs,
            entropies=sequence.entropies,
            image_hashes=sequence.hashes,
            finish_reason=reason,
            masked_token_ids=self._policy.masked_token_ids,
        )
        if sequence.future.set_running_or_notify_cancel():
            sequence.future.set_result(result)
