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
from collections.abc import Iterator
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
# Share of the batches: what takes longer to learn is shown more often, so that no task starts at zero
# when the easy ones are not yet solved.
SHARES = {
    "miniwob/click-button-sequence": 3.0,
    "miniwob/click-collapsible": 1.0,
    "miniwob/click-color": 2.0,
    "miniwob/click-dialog": 1.0,
    "miniwob/click-test": 0.5,
    "miniwob/enter-text": 3.0,
    "miniwob/focus-text-2": 1.0,
    "miniwob/grid-coordinate": 1.5,
}


@dataclass(frozen=True, slots=True)
class Hand:
    """How the demonstrator's clicks scatter, in screen pixels: normally, ``shake`` in each direction,
    around a point that lies ``offset`` (right, down) of the middle of the target."""

    shake: float
    offset: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Demo:
    """One demonstrated step. ``soft`` holds the two coordinates of a click: (index in the reply, the
    probability of each token [V] under the demonstrator's hand)."""

    task_id: str
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
        demos.append(Demo(step["task_id"], sample, soft))
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


def batches(demos: list[Demo], size: int, rng: random.Random) -> Iterator[list[Demo]]:
    """Batches without end, drawn with replacement; a task has its share whatever its length."""
    by_task: dict[str, list[Demo]] = {}
    for demo in demos:
        by_task.setdefault(demo.task_id, []).append(demo)
    tasks = sorted(by_task)
    shares = [SHARES[task] for task in tasks]
    while True:
        yield [rng.choice(by_task[task]) for task in rng.choices(tasks, shares, k=size)]


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
    average: dict[str, float] = {}
    for step, batch in enumerate(batches(demos, args.batch, random.Random(args.seed)), start=1):
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
            task, value = demo.task_id.removeprefix("miniwob/"), float(part.sum().detach())
            average[task] = 0.98 * average.get(task, value) + 0.02 * value
        if step % 50 == 0:
            detail = "  ".join(f"{task} {value:.2f}" for task, value in sorted(average.items()))
            print(f"{step} {time.monotonic() - started:.0f} s  nats a reply: {detail}", flush=True)
        if step % args.save_every == 0 or step == args.steps:
            save_model(policy, args.out / f"step-{step:05d}")
        if step == args.steps:
            return


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
