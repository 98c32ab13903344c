"""The parts of the curation where their effect can be seen: small worlds whose truth is known.

Each function plays one world with a part off and on, over several seeds, with the very functions that the
data manager and the trainer use, and gives rows for the report.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from dart_gui.data.rates import Outcome, Posterior, posterior, success_rate
from dart_gui.data.step_level import select_steps
from dart_gui.data.task_level import (
    TaskPast,
    beta_rollouts,
    next_task,
    published_rollouts,
    step_limit,
)
from dart_gui.train.losses import step_band, tis_weight, token_band

NUM_SEEDS = 20
GROUP_SIZE = 8
WINDOW = 64

Row = dict[str, Any]


def measure_all() -> dict[str, list[Row]]:
    return {
        "rollout_number": _over_seeds(
            ("fixed", "published", "beta", "beta and signal"), rollout_number
        ),
        "step_limit": _over_seeds(("fixed", "dynamic"), dynamic_limit),
        "experience_pool": _over_seeds(("without", "with"), experience_pool),
        "entropy": _over_seeds((1.0, 0.8, 0.5, "0.5 at random"), entropy_selection),
        "importance": _over_seeds(
            ("no weight", "TIS 1", "TIS 2", "untruncated", "token band", "step band"), importance
        ),
    }


def _over_seeds(names: Sequence[Any], play: Callable[[Any, int], dict[str, float]]) -> list[Row]:
    """Mean and standard error of every figure for each name."""
    rows = []
    for name in names:
        found = [play(name, seed) for seed in range(NUM_SEEDS)]
        row: Row = {"name": str(name)}
        for key in found[0]:
            values = np.array([figures[key] for figures in found])
            error = values.std(ddof=1) / math.sqrt(NUM_SEEDS)
            row[key] = {"mean": float(values.mean()), "error": float(error)}
        rows.append(row)
    return rows


# --- task level --------------------------------------------------------------------------------


def rollout_number(rule: str, seed: int) -> dict[str, float]:
    """Eight tasks from hopeless to solved, every other one four times as slow; the budget is
    environment seconds. A group teaches its task in proportion to the squared centred rewards of
    its members, which is what its gradient has to go by."""
    rates = [0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99]
    seconds = [1.0, 4.0] * 4
    pasts = [TaskPast(task_id=f"t{i}", outcomes=[], last_number=None) for i in range(len(rates))]
    rng = random.Random(seed)
    spent, number, mixed = 0.0, 0, 0
    while spent < 8000:
        sizes = _sizes(rule, pasts)
        name = f"t{number % len(rates)}"
        if rule == "beta and signal":
            name = next_task(number, pasts, sizes, floor=0.25, seed=seed)
        place = int(name[1:])
        good = [rng.random() < rates[place] for _ in range(sizes[name])]
        spent += seconds[place] * len(good)
        mixed += 0 < sum(good) < len(good)
        share = sum(good) / len(good)
        taught = len(good) * share * (1 - share) / 2  # 1 for half of eight
        rates[place] += 0.05 * taught * rates[place] * (1 - rates[place])
        fresh = [_outcome(g, env_s=seconds[place]) for g in good]
        pasts[place] = TaskPast(
            task_id=name, outcomes=(fresh + pasts[place].outcomes)[:WINDOW], last_number=number
        )
        number += 1
    return {
        "groups that teach (%)": 100 * mixed / number,
        "groups per 1000 env s": 1000 * number / spent,
        "mean success at the end (%)": 100 * sum(rates) / len(rates),
    }


def _sizes(rule: str, pasts: Sequence[TaskPast]) -> dict[str, int]:
    if rule == "fixed":
        return {past.task_id: GROUP_SIZE for past in pasts}
    if rule == "published":
        return {
            past.task_id: published_rollouts(
                success_rate(past.outcomes), n_max=GROUP_SIZE, n_min=2, threshold=0.6
            )
            for past in pasts
        }
    posteriors: dict[str, Posterior] = {past.task_id: posterior(past.outcomes) for past in pasts}
    return beta_rollouts(posteriors, n_min=2, n_max=2 * GROUP_SIZE, target=0.9, budget=GROUP_SIZE)


def _outcome(good: bool, *, num_steps: int = 4, max_steps: int = 30, env_s: float = 1.0) -> Outcome:
    return Outcome(
        success=good,
        reward=float(good),
        num_steps=num_steps,
        max_steps=max_steps,
        version=0,
        env_s=env_s,
    )


def dynamic_limit(rule: str, seed: int) -> dict[str, float]:
    """A success takes 4 + Poisson(3) steps if it is given them; a failure wanders to the limit."""
    rng = np.random.default_rng(seed)
    outcomes: list[Outcome] = []
    steps = successes = lost = 0
    for _ in range(100):
        limit = 30
        if rule == "dynamic":
            limit = step_limit(outcomes, quantile=0.9, slack=2, floor=4, ceiling=30)
        for _ in range(GROUP_SIZE):
            wanted = int(4 + rng.poisson(3)) if rng.random() < 0.4 else 10**6
            good = wanted <= limit
            lost += 30 >= wanted > limit
            successes += good
            steps += min(wanted, limit)
            outcomes.insert(0, _outcome(good, num_steps=min(wanted, limit), max_steps=limit))
        del outcomes[WINDOW * 4 :]
    return {
        "env steps per success": steps / successes,
        "successes that were cut (%)": 100 * lost / (successes + lost),
    }


# --- trajectory level --------------------------------------------------------------------------


def experience_pool(which: str, seed: int) -> dict[str, float]:
    """A policy of ten actions of which one is right, and starts at 1 in 500; exact GRPO updates, 200
    groups. With the pool a group in which all failed imitates the right action once, as the trainer
    does: weight 1, advantage of the borrowed success in its group."""
    torch.manual_seed(seed)
    logits = torch.zeros(10)
    logits[0] = -4.0
    taught = 0
    for _ in range(200):
        probs = logits.softmax(0)
        actions = torch.multinomial(probs, GROUP_SIZE, replacement=True)
        rewards = (actions == 0).float()
        grad = torch.zeros(10)
        if which == "with" and rewards.sum() == 0:
            actions = torch.cat([actions, torch.tensor([0])])
            rewards = torch.cat([rewards, torch.ones(1)])
        if rewards.std() > 0:
            taught += 1
            credit = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
            onehot = torch.nn.functional.one_hot(actions, 10).float()
            grad = (credit[:, None] * (onehot - probs)).mean(0)
        logits = logits + 0.2 * grad
    return {
        "groups that teach (%)": taught / 2,
        "success at the end (%)": 100 * float(logits.softmax(0)[0]),
    }


# --- step level --------------------------------------------------------------------------------


def entropy_selection(share: float | str, seed: int) -> dict[str, float]:
    """Episodes of ten steps; at three of them the policy is undecided between four actions and the
    choice decides the reward, at the others it is sure and nothing depends on it. How well does the
    gradient of one group of 16 point along the true one?"""
    generator = torch.Generator().manual_seed(seed)
    num_steps, num_actions, group = 10, 4, 16
    logits = torch.zeros(num_steps, num_actions)
    logits[3:, 0] = 3.0
    logits[:3] += 0.3 * torch.randn(3, num_actions, generator=generator)
    probs = logits.softmax(-1)
    true = _true_gradient(probs)
    cosines, trained = [], 0.0
    for _ in range(100):
        actions = torch.stack(
            [torch.multinomial(p, group, True, generator=generator) for p in probs], 1
        )
        rewards = (actions[:, :3] == 0).sum(1).float() / 3
        credit = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        entropy = -(probs * probs.log()).sum(-1)
        noise = 0.02 * torch.randn(group, num_steps, generator=generator)
        kept = torch.tensor(_selected(share, (entropy + noise).tolist(), generator))
        onehot = torch.nn.functional.one_hot(actions, num_actions).float()
        grad = (credit[:, None, None] * kept[:, :, None] * (onehot - probs)).mean(0)
        cosines.append(torch.nn.functional.cosine_similarity(grad.flatten(), true.flatten(), dim=0))
        trained += float(kept.float().mean()) / 100
    return {
        "cosine with the true gradient": float(torch.stack(cosines).mean()),
        "steps trained (%)": 100 * trained,
    }


def _selected(
    share: float | str, entropies: list[list[float]], generator: torch.Generator
) -> list[list[bool]]:
    if isinstance(share, str):
        share = 0.5
        shape = (len(entropies), len(entropies[0]))
        entropies = torch.rand(shape, generator=generator).tolist()
    return select_steps(entropies, share)


def _true_gradient(probs: torch.Tensor) -> torch.Tensor:
    """Of the expected reward (a third for action 0 at each of the first three steps)."""
    gradient = torch.zeros_like(probs)
    for step in range(3):
        onehot = torch.nn.functional.one_hot(torch.tensor(0), probs.shape[1])
        gradient[step] = probs[step, 0] / 3 * (onehot - probs[step])
    return gradient


# --- token level -------------------------------------------------------------------------------


def importance(method: str, seed: int) -> dict[str, float]:
    """Steps of eight tokens from a vocabulary of twenty, sampled by a policy that lags behind the
    trained one; the reward counts one token. The gradient at the trained policy from 64 stale
    steps, against the true one."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary, length, batch = 20, 8, 64
    target = torch.randn(vocabulary, generator=generator)
    behaviour = target + 0.5 * torch.randn(vocabulary, generator=generator)
    pi, mu = target.log_softmax(0), behaviour.log_softmax(0)
    true = pi.exp()[0] * (torch.nn.functional.one_hot(torch.tensor(0), vocabulary) - pi.exp())
    estimates = []
    for _ in range(200):
        tokens = torch.multinomial(mu.exp(), batch * length, True, generator=generator)
        old, rollout = pi[tokens], mu[tokens]
        weight = _weight(method, old, rollout, torch.full((batch,), length))
        # The exact baseline takes the variance of the reward's level out of the comparison.
        credit = (tokens == 0).float() - pi.exp()[0]
        onehot = torch.nn.functional.one_hot(tokens, vocabulary).float()
        estimates.append(((weight * credit)[:, None] * (onehot - pi.exp())).mean(0))
    found = torch.stack(estimates)
    scale = float(true.norm())
    return {
        "bias (% of the gradient)": 100 * float((found.mean(0) - true).norm()) / scale,
        "noise (% of the gradient)": 100
        * float((found - found.mean(0)).norm(dim=1).pow(2).mean().sqrt())
        / scale,
    }


def _weight(
    method: str, old: torch.Tensor, rollout: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    if method in ("no weight", "TIS 1", "TIS 2", "untruncated"):
        cap = {"no weight": 0.0, "TIS 1": 1.0, "TIS 2": 2.0, "untruncated": 1e9}[method]
        return tis_weight(old, rollout, cap)[0]
    weight, _ = tis_weight(old, rollout, 1e9)
    if method == "token band":
        return weight * token_band(old, rollout, 0.5, 2.0)
    return weight * step_band(old, rollout, lengths, 0.1)
