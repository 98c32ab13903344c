"""Utilisation and throughput of one segment, from what its processes reported."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dart_gui.launch.progress import Event, number

BusySamples = Mapping[str, Sequence[tuple[float, float]]]
"""worker -> (Unix seconds, busy seconds since its start), in order of time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """From one train step to a later one, so that whole cycles are compared. Shares are of 1."""

    window_s: float
    num_train_steps: int
    episodes_per_min: float
    trained_samples_per_min: float
    env_utilisation: float  # leased environments, of those that the slots can lease at once
    worker_utilisation: float  # rollout workers computing
    trainer_utilisation: float  # trainer computing
    staleness_mean: float


def measure_segment(events: Sequence[Event], busy: BusySamples, *, warm_up_s: float) -> Segment:
    """The window begins with the first train step that ends ``warm_up_s`` after the trainer's start.

    Raises:
        ValueError: fewer than two train steps end after that: the segment is too short.
    """
    started = next(_at(event) for event in events if event.get("event") == "trainer_start")
    steps = [
        event
        for event in events
        if event.get("event") == "train_step" and _at(event) >= started + warm_up_s
    ]
    if len(steps) < 2:
        raise ValueError(f"{len(steps)} train steps ended after the warm-up of {warm_up_s:g} s")
    start, end = _at(steps[0]), _at(steps[-1])
    trained = steps[1:]
    span = end - start
    within = [event for event in events if start < _at(event) <= end]
    episodes = [event for event in within if event.get("event") == "episode"]
    reports = [event for event in within if event.get("event") == "runner"]
    return Segment(
        window_s=span,
        num_train_steps=len(trained),
        episodes_per_min=60 * len(episodes) / span,
        trained_samples_per_min=60 * _sum(trained, "num_samples") / span,
        env_utilisation=statistics.fmean(map(_env_utilisation, reports)) if reports else 0.0,
        worker_utilisation=_worker_utilisation(busy, start, end),
        trainer_utilisation=min(1.0, _sum(trained, "step_s") / span),
        staleness_mean=_sum(trained, "staleness_mean") / len(trained),
    )


def _env_utilisation(event: Event) -> float:
    """The runner reports the share of all its environments; no more than slots are ever leased."""
    share = number(event, "env_utilisation") or 0.0
    slots, envs = number(event, "num_slots") or 1.0, number(event, "num_envs") or 1.0
    return min(1.0, share * envs / min(slots, envs))


def _worker_utilisation(busy: BusySamples, start: float, end: float) -> float:
    shares = []
    for samples in busy.values():
        at, busy_s = zip(*samples, strict=True)
        first, last = np.interp([start, end], at, busy_s)
        shares.append(min(1.0, float(last - first) / (end - start)))
    return statistics.fmean(shares) if shares else 0.0


def _sum(events: Sequence[Event], key: str) -> float:
    return sum(number(event, key) or 0.0 for event in events)


def _at(event: Event) -> float:
    return number(event, "at") or 0.0
