"""Each alarm against a series worked out by hand: when it is raised, when it is cleared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from dart_gui.config import Config
from dart_gui.launch.alarms import Alarms
from dart_gui.launch.progress import WINDOW_EPISODES, Progress
from dart_gui.launch.service import ServiceView, WorkerView
from dart_gui.launch.watch import Watch

OFF: dict[str, Any] = {
    "mismatch_kl": 0,
    "entropy_fraction": 0,
    "no_variance_groups": 0,
    "idle_s": 0,
    "nonfinite_gradient": False,
    "success_drop": 0,
}


class Bench:
    """The alarms that ``limits`` switch on; ``feed`` gives what changed, as ``+name`` or ``-name``."""

    def __init__(self, **limits: Any) -> None:
        config = Config.model_validate({"alarms": OFF | limits, "data": {"group_size": 4}})
        self.alarms = Alarms(config)
        self.progress = Progress()
        self.texts: list[str] = []

    def feed(
        self, *events: Mapping[str, Any], now: float = 0.0, service: ServiceView | None = None
    ) -> list[str]:
        for event in events:
            self.progress.fold(event)
            self.alarms.fold(event, self.progress)
        changes = self.alarms.check(service, now)
        self.texts += [change.reading.text for change in changes]
        return [f"{'+' if change.raised else '-'}{change.reading.key}" for change in changes]

    def feed_each(self, *events: Mapping[str, Any]) -> list[list[str]]:
        return [self.feed(event) for event in events]


def step(**values: Any) -> dict[str, Any]:
    return {"event": "train_step", "at": 0.0, "train_step": 1, **values}


def episode(group_id: str, reward: float, **values: Any) -> dict[str, Any]:
    success = reward >= 1
    return {
        "event": "episode",
        "group_id": group_id,
        "task_id": "t",
        "reward": reward,
        "success": success,
        **values,
    }


def test_mismatch_kl_is_a_mean_of_five_steps_with_hysteresis() -> None:
    bench = Bench(mismatch_kl=0.1)
    # Means of the last five: .05 .05 .175(+) .2 .22 .19 .17 .1 .075 .05 .03(-)
    values = [0.05, 0.05, 0.425, 0.275, 0.3, 0.0, 0.0, 0.0, 0.075, 0.175, 0.0, -0.1]
    means = []
    for index in range(len(values)):
        window = values[max(0, index - 4) : index + 1]
        means.append(sum(window) / len(window))
    got = bench.feed_each(*[step(kl_rollout=value) for value in values])
    assert got == [[], [], ["+mismatch_kl"], *[[]] * 8, ["-mismatch_kl"]]
    assert 0.05 <= means[-2] <= 0.1, "neither bad nor good: it stays up"
    assert means[-1] == pytest.approx(0.03)
    assert "above 0.1" in bench.texts[0]
    assert "max_staleness" in bench.texts[0]


def test_entropy_collapse_is_measured_against_the_first_steps() -> None:
    bench = Bench(entropy_fraction=0.5)
    # The first five have a mean of 1.0, so the limit is 0.5 and it is over above 0.75.
    for value in (1.2, 1.1, 1.0, 0.9):
        assert bench.feed(step(entropy=value)) == []
    assert bench.feed(step(entropy=0.8)) == []
    # 0.1 at each further step: means .78 .58 .38 .24 .1
    assert bench.feed_each(*[step(entropy=0.1)] * 5) == [[], [], ["+entropy_collapse"], [], []]
    # 1.0 at each further step: means .28 .46 .64 .82
    recovered = bench.feed_each(*[step(entropy=1.0)] * 4)
    assert recovered == [[], [], [], ["-entropy_collapse"]]


def test_entropy_of_fewer_steps_is_no_measure() -> None:
    bench = Bench(entropy_fraction=0.5)
    assert bench.feed_each(*[step(entropy=value) for value in (1.0, 0.0, 0.0, 0.0)]) == [[]] * 4


def test_groups_without_variance_in_a_row() -> None:
    bench = Bench(no_variance_groups=3)
    # Four members a group: it counts from the second on.
    assert bench.feed(episode("a", 0.0), episode("b", 1.0), episode("c", 0.0)) == []
    assert bench.feed(episode("a", 0.0), episode("b", 1.0)) == []
    assert bench.feed(episode("c", 0.0)) == ["+no_variance"]
    assert bench.feed(episode("d", 0.0), episode("d", 0.0)) == [], "raised once"
    assert "the last 3 groups" in bench.texts[0]
    # A later member of one of them differs.
    assert bench.feed(episode("d", 1.0)) == ["-no_variance"]
    assert bench.feed(episode("a", 0.0), episode("b", 1.0)) == [], "two in a row, not three"


def test_partial_rewards_are_variance() -> None:
    bench = Bench(no_variance_groups=1)
    assert bench.feed(episode("a", 0.25), episode("a", 0.5)) == []


def test_nonfinite_gradients() -> None:
    bench = Bench(nonfinite_gradient=True)
    assert bench.feed(step(num_skipped_updates=0)) == []
    assert bench.feed(step(num_skipped_updates=1)) == ["+nonfinite_gradient"]
    quiet = bench.feed_each(*[step(num_skipped_updates=0)] * 10)
    assert quiet == [[]] * 9 + [["-nonfinite_gradient"]]


def test_success_that_falls_well_below_its_best() -> None:
    bench = Bench(success_drop=0.2)
    # Without a full window there is no best: 199 successes say nothing yet.
    good = [episode(f"g{i}", 1.0) for i in range(WINDOW_EPISODES)]
    assert bench.feed(*good) == []
    bad = [episode(f"b{i}", 0.0) for i in range(41)]
    assert bench.feed(*bad[:40]) == [], "80 % is exactly 20 points below"
    assert bench.feed(bad[40]) == ["+success_drop"]
    # The 41 failures leave the window last: 200 - 41 successes push the old ones out first.
    again = [episode(f"h{i}", 1.0) for i in range(WINDOW_EPISODES)]
    assert bench.feed(*again[:179]) == [], "179 of 200: 10.5 points below, not yet over"
    assert bench.feed(again[179], again[180]) == ["-success_drop"]


def worker(worker_id: str, busy_s: float) -> WorkerView:
    return WorkerView(
        worker_id=worker_id,
        state="ready",
        policy_version=1,
        num_in_flight=0,
        busy_s=busy_s,
        restarts=0,
    )


def service(**busy_s: float) -> ServiceView:
    workers = tuple(worker(name, value) for name, value in busy_s.items())
    return ServiceView(workers=workers, desired_version=1, queue_size=0)


def test_a_module_that_is_idle_for_long() -> None:
    bench = Bench(idle_s=100)
    bench.alarms.begin(now=1000.0)
    assert bench.feed(now=1000.0, service=service(w0=1.0, w1=1.0)) == []
    busy = [{"event": "runner", "at": 1090.0, "num_running": 3}, step(at=1050.0)]
    assert bench.feed(*busy, now=1100.0, service=service(w0=2.0, w1=1.0)) == []
    # The trainer was last seen at 1050, the runner at 1090, w0 at 1100, w1 at 1000.
    assert bench.feed(now=1101.0, service=service(w0=2.0, w1=1.0)) == ["+idle/rollout w1"]
    assert bench.feed(now=1150.0, service=service(w0=3.0, w1=1.0)) == []
    assert bench.feed(now=1151.0, service=None) == ["+idle/trainer"]
    assert bench.feed({"event": "runner", "at": 1191.0, "num_running": 0}, now=1191.0) == [
        "+idle/runner"
    ]
    claimed = {"event": "batch_claimed", "at": 1192.0, "train_step": 2}
    assert bench.feed(claimed, now=1192.0) == ["-idle/trainer"]
    assert bench.feed(episode("a", 1.0, at=1193.0), now=1193.0) == ["-idle/runner"]
    # A train step that takes long is no idleness: only what does not compute is idle.
    assert bench.feed(
        {"event": "runner", "at": 2000.0, "num_running": 1},
        now=2000.0,
        service=service(w0=9.0, w1=9.0),
    ) == ["-idle/rollout w1"]
    assert bench.feed(step(at=2001.0), now=2090.0) == []
    assert bench.feed(now=2102.0) == [
        "+idle/trainer",
        "+idle/runner",
        "+idle/rollout w0",
        "+idle/rollout w1",
    ]
    assert "nothing to do for 101 s" in bench.texts[-4]


def test_time_before_training_is_no_idleness() -> None:
    bench = Bench(idle_s=100)
    assert bench.feed(step(at=0.0), {"event": "runner", "at": 0.0, "num_running": 1}) == []
    bench.alarms.begin(now=5000.0)
    assert bench.feed(now=5100.0) == []
    assert bench.feed(now=5101.0) == ["+idle/trainer", "+idle/runner"]


def test_a_resumed_run_raises_nothing_twice() -> None:
    first = Bench(nonfinite_gradient=True)
    first.progress.fold(step(num_skipped_updates=1))
    first.alarms.fold(step(num_skipped_updates=1), first.progress)
    (change,) = first.alarms.check(None, 0.0)
    event = {"event": "alarm", "at": 1.0, **change.event()}
    second = Bench(nonfinite_gradient=True)
    assert second.feed(step(num_skipped_updates=1), event) == []
    assert list(second.progress.alarms) == ["nonfinite_gradient"]
    assert second.feed(*[step(num_skipped_updates=0)] * 10) == ["-nonfinite_gradient"]


def test_all_alarms_can_be_switched_off() -> None:
    bench = Bench()
    noise = [step(kl_rollout=9.0, num_skipped_updates=1, entropy=0.0)] * 10
    assert bench.feed(*noise, *[episode(f"g{i}", 0.0) for i in range(900)], now=1e9) == []


def test_an_alarm_may_end_the_training() -> None:
    def watch(**alarms: Any) -> Watch:
        made = Watch(Config.model_validate({"alarms": OFF | {"mismatch_kl": 0.1} | alarms}))
        made.begin(0.0)
        return made

    progress, event = Progress(), step(kl_rollout=1.0)
    for made, expected in ((watch(), None), (watch(stop_on=["mismatch_kl"]), "alarms.stop_on")):
        made.fold(event, progress)
        assert made.decision() is None
        assert len(made.look(None, 1.0)) == 1
        stop = made.decision()
        assert (stop.cause if stop else None) == expected
    # Trained on by hand, the alarm that is still up does not end it again.
    made.begin(2.0)
    assert made.look(None, 3.0) == []
    assert made.decision() is None
