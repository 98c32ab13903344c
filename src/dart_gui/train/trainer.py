"""One train step: claimed groups in, updated weights out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dart_gui.byte_cache import ByteCache
from dart_gui.config import TrainConfig
from dart_gui.data.records import Batch
from dart_gui.errors import ConfigError
from dart_gui.model.policy_model import PIXEL_CACHE_BYTES, Pixels, PolicyModel
from dart_gui.train.buckets import StalenessBuckets
from dart_gui.train.forward import response_logprobs
from dart_gui.train.losses import (
    TokenLoss,
    imitation_loss,
    k3,
    log_ratio,
    policy_loss,
    step_band,
    step_mean,
    token_band,
)
from dart_gui.train.samples import Sample, microbatches, minibatches
from dart_gui.train.spans import Span, spans


@dataclass(slots=True)
class StepStats:
    """Sums over the tokens of a train step; ``means`` divides."""

    sums: dict[str, float] = field(default_factory=dict)
    buckets: StalenessBuckets = field(default_factory=StalenessBuckets)
    num_tokens: int = 0  # of sampled steps; foreign ones have no ratio to measure
    num_samples: int = 0
    num_foreign: int = 0  # samples among them
    loss: float = 0.0
    grad_norm: float = 0.0
    num_skipped: int = 0  # optimizer updates left out because the gradient was not finite

    def add(self, **tokens: Tensor) -> None:
        for name, values in tokens.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(values.detach().float().sum())

    def means(self) -> dict[str, float]:
        return {name: total / max(1, self.num_tokens) for name, total in self.sums.items()}


def trainable(network: nn.Module, freeze: Sequence[str]) -> list[nn.Parameter]:
    """The parameters to train: those with a gradient, less those whose name contains an entry of
    ``freeze``, which lose it.

    Raises:
        ConfigError: an entry matches no parameter, or nothing is left.
    """
    names = [name for name, _ in network.named_parameters()]
    if unknown := [entry for entry in freeze if not any(entry in name for name in names)]:
        raise ConfigError(
            f"train.freeze names {unknown}, which is part of no parameter's name. Names are like "
            f"{names[0]} and {names[-1]}."
        )
    for name, parameter in network.named_parameters():
        if any(entry in name for entry in freeze):
            parameter.requires_grad_(False)
    left = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not left:
        raise ConfigError(f"train.freeze = {list(freeze)} leaves nothing to train")
    return left


class Trainer:
    """Holds the network, its optimizer and, where KL is on, the reference: a model of its own, or
    ``policy`` itself where that has the reference in it.

    ``read_image`` gives the PNG of a screenshot by its hash; decoded pixels are cached.
    """

    def __init__(
        self,
        policy: PolicyModel,
        config: TrainConfig,
        *,
        read_image: Callable[[str], bytes],
        reference: PolicyModel | None = None,
    ) -> None:
        self.policy = policy
        self._config = config
        self._reference = reference
        self._read_image = read_image
        self._pixels = ByteCache[Pixels](PIXEL_CACHE_BYTES, lambda pixels: pixels.num_bytes)
        self._parameters = trainable(policy.network, config.freeze)
        if config.activation_checkpointing:
            policy.network.activation_checkpointing_enable()
        self.optimizer = torch.optim.AdamW(
            self._parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )
        self.num_updates = 0

    def learning_rate(self, progress: float = 0.0) -> float:
        """Linear warm-up over ``warmup_steps`` optimizer updates; meanwhile and after it, linear in
        ``progress`` (0 to 1, of the run) towards ``lr_end`` of ``lr``."""
        warmup = min(1.0, (self.num_updates + 1) / max(1, self._config.warmup_steps))
        return self._config.lr * warmup * (1 - (1 - self._config.lr_end) * progress)

    def step(self, batch: Batch, *, progress: float = 0.0) -> dict[str, Any]:
        """Train on ``batch`` and return its measurements; ``progress`` sets the learning rate."""
        started = time.perf_counter()
        stats = StepStats()
        parts = minibatches(batch, self._config.num_minibatches)
        old = [self._old_logprobs(part) for part in parts]
        for samples, old_logprobs in zip(parts, old, strict=True):
            self._update(samples, old_logprobs, stats, progress)
        means = stats.means()
        return {
            "loss": stats.loss / len(parts),
            "grad_norm": stats.grad_norm / len(parts),
            "lr": self.learning_rate(progress),
            "entropy": means["entropy"],
            "kl_rollout": means["kl_rollout"],
            "kl_reference": means.get("kl_reference", 0.0),
            "ratio_mean": means["ratio"],
            "clip_fraction": means["clipped"],
            "tis_mean": means["tis_weight"],
            "tis_fraction": means["tis_truncated"],
            "mask_fraction": means["masked"],
            "staleness_buckets": stats.buckets.summary(),
            "num_samples": stats.num_samples,
            "num_foreign_samples": stats.num_foreign,
            "num_tokens": stats.num_tokens,
            "num_skipped_updates": stats.num_skipped,
            "step_s": time.perf_counter() - started,
        }

    def _old_logprobs(self, samples: list[Sample]) -> list[Tensor] | None:
        """Proximal log-probabilities of each micro-batch. With a single update they are the current
        ones, and the extra forward pass is left out (None)."""
        if self._config.num_minibatches == 1:
            return None
        with torch.no_grad():
            return [self._logprobs(part)[0] for part in self._microbatches(samples)]

    def _microbatches(self, samples: list[Sample]) -> Iterator[list[Sample]]:
        return microbatches(samples, self._config.max_tokens_per_microbatch)

    def _logprobs(self, samples: list[Sample]) -> tuple[Tensor, Tensor]:
        return response_logprobs(self.policy, samples, self.pixels)

    def _update(
        self,
        samples: list[Sample],
        old_logprobs: list[Tensor] | None,
        stats: StepStats,
        progress: float,
    ) -> None:
        """One optimizer update over ``samples``, accumulated micro-batch by micro-batch."""
        self.policy.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        for index, part in enumerate(self._microbatches(samples)):
            loss = self._loss(part, old_logprobs[index] if old_logprobs else None, stats)
            loss.backward()
            stats.loss += float(loss.detach())
        self.policy.network.eval()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._config.grad_clip)
        if not bool(torch.isfinite(norm)):
            stats.num_skipped += 1
            return
        stats.grad_norm += float(norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(progress)
        self.optimizer.step()
        self.num_updates += 1

    def _loss(self, samples: list[Sample], old: Tensor | None, stats: StepStats) -> Tensor:
        config, device = self._config, self.policy.device
        logprobs, entropy = self._logprobs(samples)
        old = logprobs.detach() if old is None else old
        rollout = torch.tensor([x for s in samples for x in s.rollout_logprobs], device=device)
        lengths = torch.tensor([len(s.response_ids) for s in samples], device=device)
        weights = torch.tensor([s.weight for s in samples], device=device)
        advantages = torch.tensor([s.advantage for s in samples], device=device)
        advantages = advantages.repeat_interleave(lengths)
        tokens = policy_loss(config, logprobs, old, rollout, advantages, lengths)
        kept = self._kept(old, rollout, lengths)
        foreign = torch.tensor([s.foreign for s in samples], device=device)
        foreign = foreign.repeat_interleave(lengths)
        per_token = torch.where(kept, tokens.loss, 0.0)
        if bool(foreign.any()):
            per_token = torch.where(foreign, imitation_loss(logprobs, advantages), per_token)
        per_token = per_token * self._span_weights(samples) - config.entropy_coef * entropy
        if self._reference is not None:
            with torch.no_grad(), self._reference.as_reference():
                reference, _ = response_logprobs(self._reference, samples, self.pixels)
            kl_reference = k3(logprobs, reference)
            # An estimate only where the policy itself drew the tokens.
            per_token = per_token + config.kl_coef * torch.where(foreign, 0.0, kl_reference)
            stats.add(kl_reference=kl_reference[~foreign])
        staleness = torch.tensor([s.staleness for s in samples]).repeat_interleave(lengths.cpu())
        _measure(
            stats,
            tokens,
            entropy=entropy,
            old=old,
            rollout=rollout,
            kept=kept,
            staleness=staleness,
            sampled=~foreign,
        )
        stats.num_samples += len(samples)
        stats.num_foreign += sum(s.foreign for s in samples)
        return step_mean(per_token, lengths, weights)

    def _kept(self, old: Tensor, rollout: Tensor, lengths: Tensor) -> Tensor:
        """bool [T]: the tokens that no mask takes out. The loss is divided as if none were."""
        kept = torch.ones_like(old, dtype=torch.bool)
        low, high = self._config.token_band
        if high > 0:
            kept &= token_band(old, rollout, low, high)
        if self._config.step_band > 0:
            kept &= step_band(old, rollout, lengths, self._config.step_band)
        return kept

    def _span_weights(self, samples: list[Sample]) -> Tensor | float:
        """Weight of each token [T] by what it says; 1 where none is configured."""
        weight_of = {
            Span.THOUGHT: self._config.thought_weight,
            Span.ACTION: self._config.action_weight,
            Span.COORDINATE: self._config.coordinate_weight,
        }
        if set(weight_of.values()) == {1.0}:
            return 1.0
        decode = self.policy.tokenizer.decode
        found = [
            weight_of[span]
            for sample in samples
            for span in spans([decode([token]) for token in sample.response_ids])
        ]
        return torch.tensor(found, device=self.policy.device)

    def pixels(self, name: str) -> Pixels:
        """The preprocessed screenshot of this hash."""
        return self._pixels.get_or(name, lambda: self.policy.pixels(self._read_image(name)))


def _measure(
    stats: StepStats,
    tokens: TokenLoss,
    *,
    entropy: Tensor,
    old: Tensor,
    rollout: Tensor,
    kept: Tensor,
    staleness: Tensor,
    sampled: Tensor,
) -> None:
    """Take the measurements of the ``sampled`` tokens (bool [T])."""
    kl_rollout = k3(rollout, old)  # drawn from mu, so an estimate of KL(mu || pi_old)
    measured = {
        "entropy": entropy,
        "kl_rollout": kl_rollout,
        "ratio": tokens.ratio,
        "clipped": tokens.clipped,
        "tis_weight": tokens.tis_weight,
        "tis_truncated": tokens.tis_truncated,
        "masked": ~kept,
    }
    stats.add(**{name: values[sampled] for name, values in measured.items()})
    stats.num_tokens += int(sampled.sum())
    stats.buckets.add(
        staleness[sampled.cpu()],
        weight=log_ratio(old, rollout).exp()[sampled],
        clip_fraction=tokens.clipped[sampled],
        mask_fraction=(~kept)[sampled],
        kl=kl_rollout[sampled],
    )
