"""The objective: pure functions of tensors.

Shapes: ``[T]`` are the response tokens of a micro-batch, all samples end to end. Log-ratios are
clamped to +-20 before ``exp``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """Per-token quantities [T]; only ``loss`` carries a gradient."""

    loss: Tensor
    ratio: Tensor  # pi / pi_old
    clipped: Tensor  # bool: the clip decided the value
    tis_weight: Tensor  # min(pi_old / mu, cap)
    tis_truncated: Tensor  # bool: the cap decided the value


def log_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return (numerator - denominator).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def tis_weight(old_logprobs: Tensor, rollout_logprobs: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Truncated importance sampling: min(pi_old / mu, cap) and where the cap was reached.

    Source: arXiv 2509.23866 (distribution alignment); the weight is a constant of the gradient.
    """
    raw = log_ratio(old_logprobs, rollout_logprobs).exp()
    return raw.clamp(max=cap), raw > cap


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float,
    tis_cap: float,
) -> TokenLoss:
    """Clipped policy-gradient loss of each token.

    l = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), with r = pi / pi_old (PPO, arXiv 1707.06347;
    asymmetric as in DAPO, arXiv 2503.14476); where A < 0, l is at most -dual_clip A (arXiv 1912.09729:
    otherwise -min(...) grows without bound in r); then times min(pi_old / mu, tis_cap).

    Args:
        logprobs: of the current policy, with gradient [T].
        old_logprobs: of the policy at the start of the update (proximal) [T].
        rollout_logprobs: of the behaviour policy, as recorded [T].
        advantages: [T].
    """
    ratio = log_ratio(logprobs, old_logprobs.detach()).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(unclipped, clipped)
    bounded = torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
    weight, truncated = tis_weight(old_logprobs.detach(), rollout_logprobs, tis_cap)
    return TokenLoss(
        loss=bounded * weight,
        ratio=ratio.detach(),
        clipped=(bounded != unclipped).detach(),
        tis_weight=weight,
        tis_truncated=truncated,
    )


def k3(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """Unbiased, non-negative estimate of KL(pi || other) at tokens drawn from pi [T]:
    exp(d) - d - 1 with d = log other - log pi (Schulman, http://joschu.net/blog/kl-approx.html)."""
    difference = log_ratio(other_logprobs, logprobs)
    return difference.exp() - difference - 1


def step_mean(values: Tensor, lengths: Tensor, weights: Tensor) -> Tensor:
    """Sum over samples of weight times the mean over the sample's tokens.

    Args:
        values: [T], the samples end to end.
        lengths: [S], tokens of each sample.
        weights: [S].
    """
    return (values * torch.repeat_interleave(weights / lengths, lengths)).sum()
