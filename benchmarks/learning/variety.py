"""How much the instances of a task differ in what the agent sees: instruction and first screen."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dart_gui.config import Config
from dart_gui.env.browser.cluster import BrowserCluster
from dart_gui.env.suites import eval_seed, train_seed
from dart_gui.types import Task

NUM_PAGES = 8
FEW = 1 / 3
"""Instances hardly vary where fewer than this share of the training seeds look different."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variety:
    task_id: str
    num_train: int  # training seeds that were looked at
    num_distinct: int  # pairs of instruction and first screenshot among them
    num_instructions: int  # distinct ones
    num_held_out: int  # evaluation seeds that were looked at
    num_known: int  # of these, those that look like one of the training seeds

    @property
    def hardly_varies(self) -> bool:
        return self.num_distinct < FEW * self.num_train


Look = tuple[str, str]  # instruction, sha256 of the first screenshot


def variety_of(task_id: str, train: Iterable[Look], held_out: Iterable[Look]) -> Variety:
    train, held_out = list(train), list(held_out)
    known = set(train)
    return Variety(
        task_id=task_id,
        num_train=len(train),
        num_distinct=len(known),
        num_instructions=len({instruction for instruction, _ in train}),
        num_held_out=len(held_out),
        num_known=sum(look in known for look in held_out),
    )


async def measure_variety(
    config: Config, task_ids: list[str], *, num_seeds: int, advance: Callable[[], None]
) -> list[Variety]:
    """Look at ``num_seeds`` training seeds and half as many evaluation seeds of each task."""
    rng = random.Random("variety")
    train = [train_seed(rng) for _ in range(num_seeds)]
    held_out = [eval_seed(i) for i in range(num_seeds // 2)]
    cluster = BrowserCluster(config.env.model_copy(update={"num_envs": NUM_PAGES}))
    looks: dict[Task, Look] = {}
    todo = iter([Task(task_id=name, seed=seed) for name in task_ids for seed in train + held_out])

    async def look_at_all() -> None:
        for task in todo:
            async with cluster.lease(task) as env:
                seen = await env.reset(task)
            looks[task] = seen.instruction, hashlib.sha256(seen.screenshot).hexdigest()
            advance()

    try:
        await cluster.start()
        await asyncio.gather(*(look_at_all() for _ in range(NUM_PAGES)))
    finally:
        await cluster.close()

    def of(name: str, seeds: list[int]) -> list[Look]:
        return [looks[Task(task_id=name, seed=seed)] for seed in seeds]

    return [variety_of(name, of(name, train), of(name, held_out)) for name in task_ids]
