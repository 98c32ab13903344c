"""Are the instances that were trained on and those that were evaluated on disjoint?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dart_gui.config import Config
from dart_gui.env.suites import EVAL_SEEDS, TRAIN_SEEDS, eval_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedCheck:
    num_trained: int  # distinct (task, seed) of the groups of the run
    lowest_trained: int
    highest_trained: int
    num_evaluated: int  # seeds, the same for each task
    lowest_evaluated: int
    highest_evaluated: int
    num_shared: int  # trained seeds that are evaluation seeds, used or not


def ranges_are_disjoint() -> bool:
    return TRAIN_SEEDS.stop <= EVAL_SEEDS.start or EVAL_SEEDS.stop <= TRAIN_SEEDS.start


def check_seeds(trained: Sequence[tuple[str, int]], config: Config, *, num_tasks: int) -> SeedCheck:
    """``trained``: (task_id, seed) of every group, at least one."""
    evaluated = [eval_seed(i) for i in range(math.ceil(config.eval.num_episodes / num_tasks))]
    seeds = [seed for _, seed in trained]
    return SeedCheck(
        num_trained=len(set(trained)),
        lowest_trained=min(seeds),
        highest_trained=max(seeds),
        num_evaluated=len(evaluated),
        lowest_evaluated=min(evaluated),
        highest_evaluated=max(evaluated),
        num_shared=sum(seed in EVAL_SEEDS for seed in seeds),
    )
