"""The objective: pure functions of tensors.

Shapes: ``[T]`` are the response tokens of a micro-batch, all samples end to end; ``[S]`` its samples.
Notation: pi is the current policy, old the one at the start of the update, mu the behaviour policy as
recorded; ratio r = pi / old, mismatch rho = old / mu, w = pi / mu. Log-ratios are clamped to +-20
before ``exp``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dart_gui.config import TrainConfig

MAX_LOG_RATIO = 20.0


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """Per-token quantities [T]; only ``loss`` carries a gradient."""

    loss: Tensor
    ratio: Tensor  # pi / pi_old
    clipped: Tensor  # bool: the clip decided the value
    tis_weight: Tensor  # the weight that multiplied the loss, a constant of the gradient
    tis_truncated: Tensor  # bool: its cap decided the value


def log_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    return (numerator - denominator).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def tis_weight(old_logprobs: Tensor, rollout_logprobs: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Truncated importance sampling: min(pi_old / mu, cap) and where the cap was reached. A cap of 0
    leaves the weight out: 1 everywhere.

    Source: arXiv 2509.23866 (distribution alignment); the weight is a constant of the gradient.
    """
    raw = log_ratio(old_logprobs, rollout_logprobs).exp()
    if cap == 0:
        return torch.ones_like(raw), torch.zeros_like(raw, dtype=torch.bool)
    return raw.clamp(max=cap), raw > cap


def policy_loss(
    config: TrainConfig,
    logprobs: Tensor,
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    lengths: Tensor,
) -> TokenLoss:
    """The loss of ``config.loss`` with its constants. ``advantages`` [T], ``lengths`` [S]."""
    policies = (logprobs, old_logprobs.detach(), rollout_logprobs, advantages)
    match config.loss:
        case "grpo":
            return grpo_loss(
                *policies,
                clip_low=config.clip_low,
                clip_high=config.clip_high,
                dual_clip=config.dual_clip,
                tis_cap=config.tis_cap,
            )
        case "gspo":
            low, high = config.gspo_clip
            return gspo_loss(
                *policies, lengths, clip_low=low, clip_high=high, tis_cap=config.tis_cap
            )
        case "cispo":
            return cispo_loss(*policies, cap=config.cispo_cap)
        case "dppo":
            return dppo_loss(*policies, delta=config.dppo_delta, cap=config.dppo_cap)


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


def gspo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    lengths: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    tis_cap: float,
) -> TokenLoss:
    """The ratio of a step is the geometric mean over its tokens, s = exp(mean log r); each token takes
    s_t = sg(s) pi / sg(pi), which has the value of s and the gradient of its own log pi.

    l = -min(s_t A, clip(s_t, 1 - clip_low, 1 + clip_high) A) min(pi_old / mu, tis_cap). Source: GSPO,
    arXiv 2507.18071 (token form), which clips at 3e-4 and 4e-4.
    """
    difference = log_ratio(logprobs, old_logprobs)
    s = segment_mean(difference.detach(), lengths).exp().repeat_interleave(lengths)
    ratio = s * (logprobs - logprobs.detach()).exp()
    unclipped = -advantages * ratio
    loss = torch.maximum(unclipped, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high))
    weight, truncated = tis_weight(old_logprobs, rollout_logprobs, tis_cap)
    return TokenLoss(
        loss=loss * weight,
        ratio=ratio.detach(),
        clipped=(loss != unclipped).detach(),
        tis_weight=weight,
        tis_truncated=truncated,
    )


def cispo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    *,
    cap: float,
) -> TokenLoss:
    """l = -sg(min(w, cap)) A log pi with w = pi / mu: the weight is clipped, and no token loses its
    gradient. Source: CISPO, arXiv 2506.13585, anchored on the behaviour policy."""
    w = log_ratio(logprobs.detach(), rollout_logprobs).exp()
    weight = w.clamp(max=cap)
    return TokenLoss(
        loss=-weight * advantages * logprobs,
        ratio=log_ratio(logprobs.detach(), old_logprobs).exp(),
        clipped=w > cap,
        tis_weight=weight,
        tis_truncated=w > cap,
    )


def dppo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    *,
    delta: float,
    cap: float,
) -> TokenLoss:
    """l = -sg(min(w, cap)) A log pi M with w = pi / mu. M = 0 where the token's probability has already
    moved by more than delta in the direction of its advantage: A > 0 and pi - mu > delta, or A < 0
    and mu - pi > delta. A difference of probabilities does not punish rare tokens as a ratio does.

    Source: DPPO with binary total variation, arXiv 2602.04879.
    """
    w = log_ratio(logprobs.detach(), rollout_logprobs).exp()
    weight = w.clamp(max=cap)
    moved = logprobs.detach().exp() - rollout_logprobs.exp()
    masked = ((advantages > 0) & (moved > delta)) | ((advantages < 0) & (moved < -delta))
    return TokenLoss(
        loss=torch.where(masked, 0.0, -weight * advantages * logprobs),
        ratio=log_ratio(logprobs.detach(), old_logprobs).exp(),
        clipped=masked,
        tis_weight=weight,
        tis_truncated=w > cap,
    )


def imitation_loss(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-max(A, 0) log pi [T], for tokens whose behaviour policy is not known: no ratio, and never
    away from them. As TOPR (arXiv 2503.14286) treats positive examples."""
    return -advantages.clamp(min=0) * logprobs


def token_band(old_logprobs: Tensor, rollout_logprobs: Tensor, low: float, high: float) -> Tensor:
    """bool [T]: low <= pi_old / mu <= high. Source: IcePop (ring-1t), arXiv 2510.18855."""
    rho = log_ratio(old_logprobs, rollout_logprobs).exp()
    return (rho >= low) & (rho <= high)


def step_band(
    old_logprobs: Tensor, rollout_logprobs: Tensor, lengths: Tensor, band: float
) -> Tensor:
    """bool [T]: the geometric mean of pi_old / mu over the token's step is within 1 +- band. A long
    step is not rejected for its length, as it would be by the product."""
    mean = segment_mean(log_ratio(old_logprobs, rollout_logprobs), lengths).exp()
    return ((mean >= 1 - band) & (mean <= 1 + band)).repeat_interleave(lengths)


def effective_share(weights: Tensor) -> float:
    """Effective sample size of importance weights [N] as a share of N: (sum w)^2 / (N sum w^2)."""
    return float(weights.sum() ** 2 / (len(weights) * (weights**2).sum()))


def k3(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """Unbiased, non-negative estimate of KL(pi || other) at tokens drawn from pi [T]:
    exp(d) - d - 1 with d = log other - log pi (Schulman, http://joschu.net/blog/kl-approx.html)."""
    difference = log_ratio(other_logprobs, logprobs)
    return difference.exp() - difference - 1


def segment_mean(values: Tensor, lengths: Tensor) -> Tensor:
    """Mean of the tokens [T] of each sample [S]."""
    sample = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    zeros = torch.zeros(len(lengths), dtype=values.dtype, device=values.device)
    return zeros.index_add(0, sample, values) / lengths


def step_mean(values: Tensor, lengths: Tensor, weights: Tensor) -> Tensor:
    """Sum over samples of weight times the mean over the sample's tokens.

    Args:
        values: [T], the samples end to end.
        lengths: [S], tokens of each sample.
        weights: [S].
    """
    return (values * torch.repeat_interleave(weights / lengths, lengths)).sum()
