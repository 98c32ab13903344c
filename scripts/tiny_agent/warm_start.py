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
from pathlib import Path

import torch

from dart_gui.agent.geometry import ImageLimits, smart_resize
from dart_gui.model.policy_model import PolicyModel, image_hashes
from dart_gui.train.checkpoint import save_model
from dart_gui.train.forward import response_logprobs
from dart_gui.train.samples import Sample

SCREEN = (210, 160)  # height, width of the demonstrations' screenshots
# Share of the batches: what takes longer to learn is shown more often, so that no task starts at zero
# when the easy ones are not yet solved.
SHARES = {
    "miniwob/click-button-sequence": 3.0,
    "miniwob/click-collapsible": 1.0,
    "miniwob/click-color": 3.0,
    "miniwob/click-dialog": 0.5,
    "miniwob/click-test": 0.5,
    "miniwob/enter-text": 4.0,
    "miniwob/focus-text-2": 1.0,
    "miniwob/grid-coordinate": 0.7,
}


def load_samples(policy: PolicyModel, demos: Path) -> list[Sample]:
    """The demonstrations as training samples; the end token belongs to the reply."""
    height, width = smart_resize(*SCREEN, ImageLimits.from_model(policy.folder))
    grid = (1, height // 14, width // 14)
    end = policy.tokenizer("<|im_end|>")["input_ids"]
    samples = []
    for line in (demos / "demos.jsonl").read_text().splitlines():
        demo = json.loads(line)
        hashes = image_hashes(demo["messages"])
        prompt = policy.render(demo["messages"], dict.fromkeys(hashes, grid))
        reply = policy.tokenizer(demo["reply"], add_special_tokens=False)["input_ids"] + end
        samples.append(
            Sample(
                trajectory_id=f"{demo['task_id']}/{demo['seed']}",
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
        )
    return samples


def batches(samples: list[Sample], size: int, rng: random.Random) -> Iterator[list[Sample]]:
    """Batches without end, drawn with replacement; a task has its share whatever its length."""
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.trajectory_id.rsplit("/", 1)[0], []).append(sample)
    tasks = sorted(by_task)
    shares = [SHARES[task] for task in tasks]
    while True:
        yield [rng.choice(by_task[task]) for task in rng.choices(tasks, shares, k=size)]


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    policy = PolicyModel(args.model)
    samples = load_samples(policy, args.demos)
    print(
        f"{len(samples)} steps, prompts of up to {max(len(s.prompt_ids) for s in samples)} tokens, "
        f"replies of up to {max(len(s.response_ids) for s in samples)}",
        flush=True,
    )
    network = policy.network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=0.01)
    started = time.monotonic()
    average: dict[str, float] = {}
    for step, batch in enumerate(batches(samples, args.batch, random.Random(args.seed)), start=1):
        warmup = min(1.0, step / 50)
        decay = min(1.0, (args.steps - step + 1) / (0.2 * args.steps))
        optimizer.param_groups[0]["lr"] = args.lr * warmup * max(0.05, decay)
        logprobs, _ = response_logprobs(
            policy,
            batch,
            lambda name: policy.pixels((args.demos / "images" / f"{name}.png").read_bytes()),
        )
        loss = -logprobs.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        lengths = [len(sample.response_ids) for sample in batch]
        for sample, part in zip(batch, logprobs.detach().split(lengths), strict=True):
            task = sample.trajectory_id.rsplit("/", 1)[0].removeprefix("miniwob/")
            average[task] = 0.98 * average.get(task, -float(part.sum())) - 0.02 * float(part.sum())
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
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
