"""GSPO, CISPO, DPPO, the masks and the effective sample size against closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dart_gui.config import TrainConfig
from dart_gui.train.buckets import StalenessBuckets
from dart_gui.train.losses import (
    cispo_loss,
    dppo_loss,
    effective_share,
    gspo_loss,
    imitation_loss,
    policy_loss,
    segment_mean,
    step_band,
    token_band,
)

LENGTHS = torch.tensor([2, 1])
NAN_FREE = st.floats(-20, 0, allow_nan=False)


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor([math.log(p) for p in probabilities], dtype=torch.float64)


def gradient(loss_of, logprobs: torch.Tensor) -> list[float]:
    leaf = logprobs.clone().requires_grad_()
    loss_of(leaf).sum().backward()
    return leaf.grad.tolist()


# --- GSPO ----------------------------------------------------------------------------------------


def gspo(new, old, mu, advantages, **changed):
    constants = {"clip_low": 3e-4, "clip_high": 4e-4, "tis_cap": 2.0, **changed}
    return gspo_loss(new, old, mu, torch.tensor(advantages), LENGTHS, **constants)


def test_gspo_takes_the_geometric_mean_of_a_step():
    # Ratios 2 and 1/2 cancel in the first step; the second is its own 1.0002.
    old = logs(0.2, 0.4, 0.5)
    new = logs(0.4, 0.2, 0.5 * 1.0002)
    tokens = gspo(new, old, old, [1.0, 1.0, 2.0])
    assert tokens.ratio.tolist() == pytest.approx([1.0, 1.0, 1.0002])
    assert tokens.loss.tolist() == pytest.approx([-1.0, -1.0, -2.0004])
    assert not tokens.clipped.any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.001, 1.0, -1.0004),  # clipped from above
        (0.999, 1.0, -0.999),  # a good step that became unlikely is not
        (0.999, -1.0, 0.9997),  # a bad one is clipped from below
        (1.001, -1.0, 1.001),
    ],
)
def test_gspo_clips_the_step(ratio, advantage, expected):
    old = logs(0.2, 0.2, 0.5)
    new = old + torch.tensor([math.log(ratio)] * 2 + [0.0])
    tokens = gspo(new, old, old, [advantage, advantage, 0.0])
    assert tokens.loss.tolist()[:2] == pytest.approx([expected] * 2, rel=1e-9)
    assert tokens.clipped.tolist()[:2] == [expected != -advantage * ratio] * 2


def test_gspo_gradient_of_a_token_is_the_steps_ratio_times_advantage():
    old = logs(0.2, 0.4, 0.5)
    new = old + torch.tensor([1e-4, 3e-4, 0.0])
    found = gradient(lambda leaf: gspo(leaf, old, old, [2.0, 2.0, -1.0]).loss, new)
    step = math.exp(2e-4)
    assert found == pytest.approx([-2 * step, -2 * step, 1.0])


def test_gspo_weighs_by_truncated_importance():
    old, mu = logs(0.4, 0.4, 0.4), logs(0.5, 0.1, 0.4)  # old / mu = .8, 4 -> 2, 1
    tokens = gspo(old, old, mu, [1.0, 1.0, 1.0])
    assert tokens.loss.tolist() == pytest.approx([-0.8, -2.0, -1.0])
    assert tokens.tis_truncated.tolist() == [False, True, False]


# --- CISPO ---------------------------------------------------------------------------------------


def test_cispo_clips_the_weight_and_keeps_every_gradient():
    mu = logs(0.1, 0.01, 0.5)
    new = logs(0.3, 0.5, 0.25)  # w = 3, 50 -> 5, 0.5
    advantages = torch.tensor([1.0, 1.0, -2.0])

    def loss_of(leaf):
        return cispo_loss(leaf, new, mu, advantages, cap=5.0).loss

    assert loss_of(new).tolist() == pytest.approx(
        [-3 * math.log(0.3), -5 * math.log(0.5), 2 * 0.5 * math.log(0.25)]
    )
    assert gradient(loss_of, new) == pytest.approx([-3.0, -5.0, 1.0])


# --- DPPO ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pi", "mu", "advantage", "weight"),
    [
        (0.5, 0.4, 1.0, 1.25),  # moved .1 < .2
        (0.61, 0.4, 1.0, 0.0),  # moved .21 the way of its advantage: masked
        (0.61, 0.4, -1.0, 1.525),  # against it: not masked
        (0.2, 0.41, -1.0, 0.0),
        (0.2, 0.41, 1.0, 0.2 / 0.41),
        (0.02, 0.0005, 1.0, 20.0),  # a rare token may grow 40-fold: only the weight is capped
    ],
)
def test_dppo_masks_by_the_change_of_probability(pi, mu, advantage, weight):
    def loss_of(leaf):
        return dppo_loss(
            leaf, leaf.detach(), logs(mu), torch.tensor([advantage]), delta=0.2, cap=20.0
        ).loss

    assert loss_of(logs(pi)).tolist() == pytest.approx([-weight * advantage * math.log(pi)])
    assert gradient(loss_of, logs(pi)) == pytest.approx([-weight * advantage])


# --- masks ---------------------------------------------------------------------------------------


def test_a_token_band_keeps_ratios_between_low_and_high():
    old, mu = logs(0.2, 0.2, 0.2, 0.2), logs(0.5, 0.4, 0.1, 0.09)  # .4, .5, 2, 2.2
    assert token_band(old, mu, 0.5, 2.0).tolist() == [False, True, True, False]


def test_a_step_band_judges_the_geometric_mean_not_the_product():
    mu = torch.zeros(5, dtype=torch.float64)
    # Step one: +4 % and -4 % cancel. Step two: +2 % each, product 1.06, mean 1.02.
    old = mu + torch.tensor([1.04, 1 / 1.04, 1.02, 1.02, 1.02]).log()
    lengths = torch.tensor([2, 3])
    assert step_band(old, mu, lengths, 0.03).tolist() == [True] * 5
    assert step_band(old, mu, lengths, 0.01).tolist() == [True, True, False, False, False]


def test_segment_means():
    values = torch.tensor([1.0, 3.0, 10.0])
    assert segment_mean(values, LENGTHS).tolist() == [2.0, 10.0]


def test_imitation_is_never_away_from_a_token():
    logprobs = torch.tensor([-2.0, -2.0])
    assert imitation_loss(logprobs, torch.tensor([1.5, -1.0])).tolist() == [3.0, 0.0]


# --- measurements --------------------------------------------------------------------------------


def test_effective_share_by_hand():
    assert effective_share(torch.ones(7)) == pytest.approx(1.0)
    # (1 + 3)^2 / (2 * (1 + 9)) = 16 / 20
    assert effective_share(torch.tensor([1.0, 3.0])) == pytest.approx(0.8)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20))
def test_effective_share_is_between_one_of_n_and_all(weights):
    share = effective_share(torch.tensor(weights, dtype=torch.float64))
    assert 1 / len(weights) - 1e-9 <= share <= 1 + 1e-9


def test_buckets_keep_staleness_apart():
    buckets = StalenessBuckets()
    assert buckets.summary() == {}
    for weight, kl in ((1.0, 0.2), (3.0, 0.4)):
        buckets.add(
            torch.tensor([0, 2]),
            weight=torch.tensor([1.0, weight]),
            kl=torch.tensor([0.0, kl]),
            clip_fraction=torch.tensor([False, True]),
        )
    found = buckets.summary()
    assert found["0"] == {"num_tokens": 2, "ess": 1.0, "kl": 0.0, "clip_fraction": 0.0}
    assert found["2"] == pytest.approx(
        {"num_tokens": 2, "ess": 0.8, "kl": 0.3, "clip_fraction": 1.0}
    )


@pytest.mark.parametrize("loss", ["grpo", "gspo", "cispo", "dppo"])
def test_on_policy_every_loss_has_the_policy_gradient(loss):
    """With pi = old = mu the gradient of each is -A: they differ off policy only."""
    config = TrainConfig(loss=loss)
    at = logs(0.3, 0.6, 0.1)
    advantages = torch.tensor([0.5, -1.5, 2.0])
    found = gradient(lambda leaf: policy_loss(config, leaf, at, at, advantages, LENGTHS).loss, at)
    assert found == pytest.approx([-0.5, 1.5, -2.0])


@given(
    st.sampled_from(["grpo", "gspo", "cispo", "dppo"]),
    st.lists(NAN_FREE, min_size=9, max_size=9),
    st.floats(-3, 3),
)
def test_every_loss_has_a_bounded_gradient(loss, numbers, advantage):
    config = TrainConfig(loss=loss)
    new, old, mu = torch.tensor(numbers, dtype=torch.float64).split(3)
    advantages = torch.full((3,), advantage, dtype=torch.float64)
    found = gradient(lambda leaf: policy_loss(config, leaf, old, mu, advantages, LENGTHS).loss, new)
    # A ratio below its bound times the cap of its weight; GSPO's step ratio has no dual clip.
    assert all(math.isfinite(g) for g in found)
    if loss in ("cispo", "dppo"):
        cap = config.cispo_cap if loss == "cispo" else config.dppo_cap
        assert max(map(abs, found)) <= cap * abs(advantage) + 1e-9
