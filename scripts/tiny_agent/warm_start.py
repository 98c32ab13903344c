"""Behaviour cloning of the demonstrations into an untrained tiny agent.

    python scripts/tiny_agent/warm_start.py MODEL DEMOS OUT --steps 1500

Imitation stops early, on purpose: the shipped agent is a beginner that knows the screens and the
grammar and often misses. The rest is for reinforcement learning. Runs on one core; a snapshot every
``--save-every`` steps lies in ``OUT/step-*``.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from dart_gui.agent.geometry import ImageLimits, smart_resize
from dart_gui.model.policy_model import Pixels, PolicyModel, image_hashes
from dart_gui.train.checkpoint import save_model
from dart_gui.train.forward import response_hidden
from dart_gui.train.samples import Sample

SCREEN = (210, 160)  # height, width of the demonstrations' screenshots
# A skill's share of the batches grows with what is still to be learnt of it, in nats a reply, between
# these bounds: nothing is forgotten, and what cannot be learnt does not crowd out the rest.
MIN_SHARE, MAX_SHARE = 0.2, 3.0


@dataclass(frozen=True, slots=True)
class Hand:
    """How the demonstrator's clicks scatter, in screen pixels: normally, ``shake`` in each direction,
    around a point that lies ``offset`` (right, down) of the middle of the target."""

    shake: float
    offset: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Demo:
    """One demonstrated step.

    ``skill`` is its task and kind of action. ``soft`` holds the two coordinates of a click: (index in
    the reply, the probability of each token [V] under the demonstrator's hand).
    """

    skill: str
    sample: Sample
    soft: list[tuple[int, Tensor]]


class Coordinates:
    """The distribution of a click's coordinate over the tokens of the numbers."""

    def __init__(self, policy: PolicyModel, hand: Hand) -> None:
        self.hand = hand
        self.height, self.width = smart_resize(*SCREEN, ImageLimits.from_model(policy.folder))
        self.vocab_size = policy.network.config.text_config.vocab_size
        ids = policy.tokenizer([str(n) for n in range(max(self.height, self.width))])["input_ids"]
        if any(len(tokens) != 1 for tokens in ids):
            raise ValueError("a coordinate has to be one token")
        self.numbers = torch.tensor([tokens[0] for tokens in ids])

    def soft(self, reply: list[int], box: list[float]) -> list[tuple[int, Tensor]]:
        known = set(self.numbers.tolist())
        x, y = [index for index, token in enumerate(reply) if token in known][-2:]
        x0, y0, x1, y1 = box
        return [
            (x, self._spread((x0 + x1) / 2 + self.hand.offset[0], self.width, SCREEN[1])),
            (y, self._spread((y0 + y1) / 2 + self.hand.offset[1], self.height, SCREEN[0])),
        ]

    def _spread(self, middle: float, size: int, screen: int) -> Tensor:
        pixel = torch.arange(size) / size * screen
        probs = torch.softmax(-0.5 * ((pixel - middle) / self.hand.shake) ** 2, 0)
        return torch.zeros(self.vocab_size).index_add(0, self.numbers[:size], probs)


def load_demos(policy: PolicyModel, folder: Path, hand: Hand) -> list[Demo]:
    """The demonstrations; the end token belongs to the reply."""
    coordinates = Coordinates(policy, hand)
    grid = (1, coordinates.height // 14, coordinates.width // 14)
    end = policy.tokenizer("<|im_end|>")["input_ids"]
    demos = []
    for line in (folder / "demos.jsonl").read_text().splitlines():
        step = json.loads(line)
        hashes = image_hashes(step["messages"])
        prompt = policy.render(step["messages"], dict.fromkeys(hashes, grid))
        reply = policy.tokenizer(step["reply"], add_special_tokens=False)["input_ids"] + end
        sample = Sample(
            trajectory_id=f"{step['task_id']}/{step['seed']}",
            prompt_ids=prompt.prompt_ids,
            response_ids=reply,
            rollout_logprobs=[0.0] * len(reply),
            image_hashes=hashes,
            masked_token_ids=[],
            temperature=1.0,
            policy_version=0,
            advantage=1.0,
            weight=1.0,
        )
        soft = coordinates.soft(reply, step["box"]) if step["box"] else []
        action = step["reply"].rpartition("Action: ")[2].partition("(")[0]
        demos.append(Demo(f"{step['task_id'].partition('/')[2]}/{action}", sample, soft))
    return demos


def divergence(logprobs: Tensor, demo: Demo) -> Tensor:
    """KL divergence in nats [R] of the agent from the demonstrator at each token of the reply, from
    the agent's log-probabilities [R, V]."""
    ids = torch.tensor(demo.sample.response_ids)
    rows = -logprobs.gather(1, ids[:, None])[:, 0]
    for index, probs in demo.soft:
        rows = rows.clone()
        rows[index] = torch.nn.functional.kl_div(logprobs[index], probs, reduction="sum")
    return rows


class Curriculum:
    """Draws the batches; a skill has its share whatever its number of demonstrations."""

    def __init__(self, demos: list[Demo], rng: random.Random) -> None:
        self._rng = rng
        self._by_skill: dict[str, list[Demo]] = {}
        for demo in demos:
            self._by_skill.setdefault(demo.skill, []).append(demo)
        self.nats: dict[str, float] = {}  # a reply, running average

    def batch(self, size: int) -> list[Demo]:
        skills = sorted(self._by_skill)
        shares = [min(MAX_SHARE, max(MIN_SHARE, self.nats.get(s, MAX_SHARE))) for s in skills]
        return [
            self._rng.choice(self._by_skill[skill])
            for skill in self._rng.choices(skills, shares, k=size)
        ]

    def learnt(self, skill: str, nats: float) -> None:
        self.nats[skill] = 0.98 * self.nats.get(skill, nats) + 0.02 * nats

    def __str__(self) -> str:
        return "  ".join(f"{skill} {nats:.2f}" for skill, nats in sorted(self.nats.items()))


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    policy = PolicyModel(args.model)
    demos = load_demos(policy, args.demos, Hand(args.shake, tuple(args.offset)))
    print(
        f"{len(demos)} steps, prompts of up to {max(len(d.sample.prompt_ids) for d in demos)} "
        f"tokens, replies of up to {max(len(d.sample.response_ids) for d in demos)}",
        flush=True,
    )

    @lru_cache(maxsize=8192)
    def pixels(name: str) -> Pixels:
        return policy.pixels((args.demos / "images" / f"{name}.png").read_bytes())

    network = policy.network.train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01
    )
    started = time.monotonic()
    curriculum = Curriculum(demos, random.Random(args.seed))
    for step in range(1, args.steps + 1):
        batch = curriculum.batch(args.batch)
        warmup = min(1.0, step / 50)
        decay = min(1.0, (args.steps - step + 1) / (0.4 * args.steps))
        optimizer.param_groups[0]["lr"] = args.lr * warmup * max(0.05, decay)
        samples = [demo.sample for demo in batch]
        logits = policy.network.lm_head(response_hidden(policy, samples, pixels))
        parts = logits.log_softmax(-1).split([len(sample.response_ids) for sample in samples])
        losses = [divergence(part, demo) for part, demo in zip(parts, batch, strict=True)]
        loss = torch.cat(losses).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        for demo, part in zip(batch, losses, strict=True):
            curriculum.learnt(demo.skill, float(part.sum().detach()))
        if step % 50 == 0:
            seconds = time.monotonic() - started
            print(f"{step} {seconds:.0f} s  nats a reply: {curriculum}", flush=True)
        if step % args.save_every == 0 or step == args.steps:
            save_model(policy, args.out / f"step-{step:05d}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder that build.py wrote")
    parser.add_argument("demos", type=Path, help="folder that demos.py wrote")
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--shake", type=float, default=8.0, help="of the hand, in pixels")
    parser.add_argument(
        "--offset",
        type=float,
        nargs=2,
        default=(0.0, 0.0),
        metavar=("RIGHT", "DOWN"),
        help="from the middle of the target to where the hand aims, in pixels",
    )
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
