"""The objective against hand-worked numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dart_gui.train.losses import grpo_loss, k3, log_ratio, step_mean, tis_weight

CONSTANTS = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0, "tis_cap": 2.0}
logprob = st.floats(-30, 0, allow_nan=False)


def loss_of(ratio: float, advantage: float, *, rho: float = 1.0, **changed: float) -> float:
    """The loss of one token with pi / pi_old = ratio and pi_old / mu = rho."""
    old = torch.tensor([-1.0])
    tokens = grpo_loss(
        old + math.log(ratio),
        old,
        old - math.log(rho),
        torch.tensor([advantage]),
        **{**CONSTANTS, **changed},
    )
    return float(tokens.loss)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),  # on policy: -A
        (1.1, 2.0, -2.2),  # inside the clip: -r A
        (1.5, 2.0, -2.56),  # above it: -(1 + 0.28) A
        (0.5, 2.0, -1.0),  # a good token that became unlikely is not clipped: -r A
        (0.5, -2.0, 1.6),  # a bad one that did is: -(1 - 0.2) A
        (1.5, -2.0, 3.0),  # a bad token that became likely is not clipped: -r A
        (9.0, -2.0, 6.0),  # but bounded by the dual clip: -3 A
    ],
)
def test_clipped_loss(ratio, advantage, expected):
    assert loss_of(ratio, advantage) == pytest.approx(expected, rel=1e-5)


def test_tis_weight_multiplies_the_loss_and_is_truncated():
    assert loss_of(1.0, 2.0, rho=1.5) == pytest.approx(-3.0, rel=1e-5)
    assert loss_of(1.0, 2.0, rho=5.0) == pytest.approx(-4.0, rel=1e-5)  # capped at 2
    assert loss_of(1.0, 2.0, rho=5.0, tis_cap=1.0) == pytest.approx(-2.0, rel=1e-5)
    assert loss_of(1.0, 2.0, rho=5.0, tis_cap=0) == pytest.approx(-2.0, rel=1e-5)  # left out
    weight, truncated = tis_weight(torch.tensor([-1.0, -1.0]), torch.tensor([-1.5, -4.0]), 2.0)
    assert weight.tolist() == pytest.approx([math.exp(0.5), 2.0])
    assert truncated.tolist() == [False, True]


def test_on_policy_gradient_is_advantage_times_weight():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    tokens = grpo_loss(
        logprobs,
        logprobs.detach(),
        torch.tensor([-1.0, -2.5]),
        torch.tensor([0.5, -1.5]),
        **CONSTANTS,
    )
    tokens.loss.sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([-0.5, 1.5 * math.exp(0.5)], rel=1e-5)


def test_a_clipped_token_has_no_gradient():
    logprobs = torch.tensor([0.0], requires_grad=True)
    tokens = grpo_loss(
        logprobs, torch.tensor([-1.0]), torch.tensor([-1.0]), torch.tensor([1.0]), **CONSTANTS
    )
    tokens.loss.sum().backward()
    assert tokens.clipped.tolist() == [True]
    assert logprobs.grad.tolist() == [0.0]


def test_step_mean_weighs_samples_not_tokens():
    values = torch.tensor([1.0, 3.0, 10.0])
    assert float(step_mean(values, torch.tensor([2, 1]), torch.tensor([0.25, 0.75]))) == 8.0


def test_k3_against_numbers():
    # d = log(other) - log(pi) = 0.5: exp(0.5) - 0.5 - 1
    assert float(k3(torch.tensor(-1.0), torch.tensor(-0.5))) == pytest.approx(0.1487213, rel=1e-5)
    assert float(k3(torch.tensor(-1.0), torch.tensor(-1.0))) == 0.0


@given(logprob, logprob)
def test_k3_is_never_negative(a, b):
    assert float(k3(torch.tensor(a), torch.tensor(b))) >= -1e-5


@given(logprob, logprob, logprob, st.floats(-5, 5))
def test_the_loss_is_bounded_from_both_sides(new, old, rollout, advantage):
    tokens = grpo_loss(
        torch.tensor([new]),
        torch.tensor([old]),
        torch.tensor([rollout]),
        torch.tensor([advantage]),
        **CONSTANTS,
    )
    cap = CONSTANTS["tis_cap"]
    bound = max(1 + CONSTANTS["clip_high"], CONSTANTS["dual_clip"]) * abs(advantage) * cap
    assert abs(float(tokens.loss)) <= bound + 1e-4


def test_log_ratio_survives_impossible_tokens():
    assert float(log_ratio(torch.tensor(0.0), torch.tensor(float("-inf")))) == 20.0
