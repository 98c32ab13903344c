"""Alarms of a run: pure rules over its events, each with its hysteresis.

A rule folds events and gives a :class:`Reading` when it is asked: the measured value, whether it is
bad, and whether it is good again. Between bad and good an alarm stays as it is, so it is raised once
and cleared once, and does not flicker. Times are Unix seconds; the clock is the caller's.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from dart_gui.config import AlarmName, Config
from dart_gui.launch.progress import WINDOW_EPISODES, Event, Progress, mean, number
from dart_gui.launch.service import ServiceView

WINDOW = 5  # train steps: one noisy batch is no alarm
QUIET_STEPS = 10  # train steps without a skipped update that clear its alarm
VARIANCE_TOLERANCE = 1e-6
MAX_GROUPS = 4096  # whose rewards are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    name: AlarmName
    subject: str = ""  # the module, where there are several
    value: float
    limit: float
    is_bad: bool
    is_good: bool
    text: str  # what is wrong, and what to do

    @property
    def key(self) -> str:
        return f"{self.name}/{self.subject}" if self.subject else self.name


class Rule(Protocol):
    def fold(self, event: Event, progress: Progress) -> None: ...

    def read(self, now: float) -> Iterator[Reading]:
        """Nothing where it is too early to tell."""


class MismatchKl:
    """k3 estimate of KL(rollout || trainer), nats per token: ``kl_rollout`` of the train steps."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._values: deque[float] = deque(maxlen=WINDOW)

    def fold(self, event: Event, progress: Progress) -> None:
        value = number(event, "kl_rollout")
        if event.get("event") == "train_step" and value is not None:
            self._values.append(value)

    def read(self, now: float) -> Iterator[Reading]:
        value = mean(self._values)
        if value is not None:
            yield Reading(
                name="mismatch_kl",
                value=value,
                limit=self._limit,
                is_bad=value > self._limit,
                is_good=value < self._limit / 2,
                text=f"the KL between rollout and trainer is {value:.2g} nats per token, above "
                f"{self._limit:g}: the policy that is trained is not the one that sampled. Lower "
                "data.max_staleness or train.lr; if it was high from the first step on, engine and "
                "trainer disagree (`dart-gui doctor` compares them).",
            )


class EntropyCollapse:
    def __init__(self, fraction: float) -> None:
        self._fraction = fraction
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=WINDOW)

    def fold(self, event: Event, progress: Progress) -> None:
        value = number(event, "entropy")
        if event.get("event") != "train_step" or value is None:
            return
        if len(self._first) < WINDOW:
            self._first.append(value)
        self._last.append(value)

    def read(self, now: float) -> Iterator[Reading]:
        initial, value = mean(self._first), mean(self._last)
        if len(self._first) < WINDOW or initial is None or value is None:
            return
        limit = self._fraction * initial
        yield Reading(
            name="entropy_collapse",
            value=value,
            limit=limit,
            is_bad=value < limit,
            is_good=value > min(1.5 * limit, initial),
            text=f"the entropy has fallen to {value:.3g} nats per token, from {initial:.3g} in the "
            "beginning: the policy explores no more. Lower train.lr, raise train.clip_high or "
            "train.entropy_coef, and go back to an earlier checkpoint.",
        )


class NoVariance:
    """Groups in a row whose rewards were all equal, among those of which half have been stored:
    a group counts before it is complete, and stops counting when a later member differs."""

    def __init__(self, num_groups: int, *, group_size: int) -> None:
        self._limit = num_groups
        self._min_members = max(2, group_size // 2)
        self._groups: OrderedDict[str, tuple[int, float, float]] = OrderedDict()
        self._in_a_row: set[str] = set()

    def fold(self, event: Event, progress: Progress) -> None:
        reward, group_id = number(event, "reward"), event.get("group_id")
        if event.get("event") != "episode" or reward is None or not isinstance(group_id, str):
            return
        count, low, high = self._groups.pop(group_id, (0, reward, reward))
        count, low, high = count + 1, min(low, reward), max(high, reward)
        self._groups[group_id] = count, low, high
        if len(self._groups) > MAX_GROUPS:
            self._groups.popitem(last=False)
        if high - low > VARIANCE_TOLERANCE:
            self._in_a_row.clear()
        elif count >= self._min_members:
            self._in_a_row.add(group_id)

    def read(self, now: float) -> Iterator[Reading]:
        count = len(self._in_a_row)
        yield Reading(
            name="no_variance",
            value=count,
            limit=self._limit,
            is_bad=count >= self._limit,
            is_good=count == 0,
            text=f"the last {count} groups all had equal rewards: there is nothing to learn from. "
            "Choose tasks that the agent sometimes solves and sometimes does not (env.tasks), or "
            "raise rollout.temperature or data.group_size.",
        )


class NonfiniteGradient:
    def __init__(self) -> None:
        self._skipped: deque[bool] = deque(maxlen=QUIET_STEPS)

    def fold(self, event: Event, progress: Progress) -> None:
        if event.get("event") == "train_step":
            self._skipped.append((number(event, "num_skipped_updates") or 0) > 0)

    def read(self, now: float) -> Iterator[Reading]:
        count = sum(self._skipped)
        yield Reading(
            name="nonfinite_gradient",
            value=count,
            limit=0,
            is_bad=count > 0,
            is_good=count == 0,
            text=f"updates were left out in {count} of the last {len(self._skipped)} train steps, "
            "since their gradient was not finite. Lower train.lr, or train in float32 (model.dtype).",
        )


class SuccessDrop:
    """Over full windows of training episodes only."""

    def __init__(self, drop: float) -> None:
        self._drop = drop
        self._rate: float | None = None
        self._best = -math.inf

    def fold(self, event: Event, progress: Progress) -> None:
        if event.get("event") == "episode" and len(progress.episodes) == WINDOW_EPISODES:
            self._rate = progress.success_rate
            self._best = max(self._best, self._rate or 0.0)

    def read(self, now: float) -> Iterator[Reading]:
        if self._rate is None:
            return
        fallen = self._best - self._rate
        yield Reading(
            name="success_drop",
            value=self._rate,
            limit=self._best - self._drop,
            is_bad=fallen > self._drop,
            is_good=fallen < self._drop / 2,
            text=f"success has fallen to {100 * self._rate:.0f} % of the last {WINDOW_EPISODES} "
            f"training episodes, from {100 * self._best:.0f} % at its best. Lower train.lr, or add "
            "a KL to the initial policy (train.kl_coef); `--checkpoint best` is what was best in "
            "the evaluations.",
        )


class Idle:
    """The trainer without a batch, the runner without an episode, a rollout worker that computes
    nothing. What has not been seen yet counts from :meth:`begin` on."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._busy_at: dict[str, float] = {}  # module -> last sign of work
        self._worker_busy_s: dict[str, float] = {}
        self._trainer_computes = False

    def begin(self, now: float) -> None:
        """Training starts, again perhaps: what happened before it is no idleness."""
        self._busy_at = dict.fromkeys(("trainer", "runner"), now)
        self._worker_busy_s = {}
        self._trainer_computes = False

    def fold(self, event: Event, progress: Progress) -> None:
        at = number(event, "at")
        if at is None:
            return
        kind = event.get("event")
        if kind in ("trainer_start", "batch_claimed", "train_step"):
            self._trainer_computes = kind == "batch_claimed"
            self._sign("trainer", at)
        elif kind == "episode" or (kind == "runner" and number(event, "num_running")):
            self._sign("runner", at)

    def see(self, service: ServiceView | None, now: float) -> None:
        """A worker computes where its ``busy_s`` has changed since the last look."""
        for worker in service.workers if service else ():
            name = f"rollout {worker.worker_id}"
            if self._worker_busy_s.get(name) != worker.busy_s:
                self._worker_busy_s[name] = worker.busy_s
                self._sign(name, now)

    def _sign(self, module: str, at: float) -> None:
        self._busy_at[module] = max(at, self._busy_at.get(module, at))

    def read(self, now: float) -> Iterator[Reading]:
        for module, busy_at in self._busy_at.items():
            computes = module == "trainer" and self._trainer_computes
            idle_s = 0.0 if computes else max(0.0, now - busy_at)
            yield Reading(
                name="idle",
                subject=module,
                value=idle_s,
                limit=self._limit_s,
                is_bad=idle_s > self._limit_s,
                is_good=idle_s < self._limit_s / 2,
                text=f"{module} has had nothing to do for {idle_s:.0f} s. {_REMEDY[module.split()[0]]}",
            )


_REMEDY = {
    "trainer": "It waits for groups with variance: see the alarm no_variance, the episodes per "
    "minute, and logs/runner.log.",
    "runner": "It waits for admission (data.max_staleness), a page or the rollout service: see "
    "logs/runner.log and logs/rollout.log.",
    "rollout": "It gets no requests: raise runner.num_slots, or see logs/rollout.log if it does not "
    "take the weights.",
}


@dataclass(frozen=True, slots=True)
class Change:
    reading: Reading
    raised: bool  # else cleared

    def event(self) -> dict[str, object]:
        """The values of the ``alarm`` event."""
        return {
            "alarm": self.reading.name,
            "subject": self.reading.subject,
            "state": "raised" if self.raised else "cleared",
            "value": self.reading.value,
            "limit": self.reading.limit,
            "text": self.reading.text if self.raised else "",
        }


class Alarms:
    """All rules that the configuration switches on. Which alarms are up is restored by folding the
    ``alarm`` events of the run, so a resumed run raises none twice."""

    def __init__(self, config: Config) -> None:
        self._idle = Idle(config.alarms.idle_s)
        self._rules = _rules(config, self._idle)
        self._active: set[str] = set()

    def fold(self, event: Event, progress: Progress) -> None:
        if event.get("event") == "alarm":
            key = "/".join(filter(None, [str(event.get("alarm")), str(event.get("subject") or "")]))
            (self._active.add if event.get("state") == "raised" else self._active.discard)(key)
        for rule in self._rules:
            rule.fold(event, progress)

    def begin(self, now: float) -> None:
        self._idle.begin(now)

    def check(self, service: ServiceView | None, now: float) -> list[Change]:
        """What is raised or cleared now; a second call gives nothing new."""
        self._idle.see(service, now)
        changes = []
        for reading in [reading for rule in self._rules for reading in rule.read(now)]:
            is_active = reading.key in self._active
            if reading.is_bad and not is_active:
                self._active.add(reading.key)
                changes.append(Change(reading, raised=True))
            elif reading.is_good and is_active:
                self._active.discard(reading.key)
                changes.append(Change(reading, raised=False))
        return changes


def _rules(config: Config, idle: Idle) -> Sequence[Rule]:
    limits = config.alarms
    rules: list[tuple[bool, Rule]] = [
        (limits.mismatch_kl > 0, MismatchKl(limits.mismatch_kl)),
        (limits.entropy_fraction > 0, EntropyCollapse(limits.entropy_fraction)),
        (
            limits.no_variance_groups > 0,
            NoVariance(limits.no_variance_groups, group_size=config.data.group_size),
        ),
        (limits.idle_s > 0, idle),
        (limits.nonfinite_gradient, NonfiniteGradient()),
        (limits.success_drop > 0, SuccessDrop(limits.success_drop)),
    ]
    return [rule for is_on, rule in rules if is_on]
