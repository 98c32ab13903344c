"""What the service counts, in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dart_gui.rollout.states import WorkerSlot, WorkerState
from dart_gui.rollout.updates import UpdateJob, UpdateState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Counts of values up to each bound."""

    def __init__(self, bounds: Sequence[float] = _BUCKETS_S) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self, name: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            total += count
            label = "+Inf" if bound == math.inf else f"{bound:g}"
            yield sample(f"{name}_bucket", total, {"le": label})
        yield sample(f"{name}_sum", self._sum)
        yield sample(f"{name}_count", total)


class Telemetry:
    """Counters of requests. What workers and updates know is read from them when it is asked for."""

    def __init__(self) -> None:
        self.answers: Counter[int] = Counter()  # completions asked for, by HTTP status
        self.num_resends = 0
        self.num_aborts = 0
        self.request_s = Histogram()
        self.wait_s = Histogram()

    def render(
        self,
        slots: Sequence[WorkerSlot],
        jobs: Iterable[UpdateJob],
        *,
        queue_size: int,
        sticky: Mapping[str, int],
        desired_version: int,
    ) -> str:
        lines: list[str] = []
        for status, count in sorted(self.answers.items()):
            lines.append(sample("dart_requests_total", count, {"status": status}))
        lines.append(sample("dart_resends_total", self.num_resends))
        lines.append(sample("dart_aborts_total", self.num_aborts))
        lines += self.request_s.samples("dart_request_seconds")
        lines += self.wait_s.samples("dart_queue_seconds")
        lines.append(sample("dart_queue_size", queue_size))
        for kind, count in sticky.items():
            lines.append(sample("dart_routes_total", count, {"kind": kind}))
        lines.append(sample("dart_desired_version", desired_version))
        states = Counter(job.state for job in jobs)
        lines += [sample("dart_updates", states[state], {"state": state}) for state in UpdateState]
        for slot in slots:
            lines += _worker_samples(slot)
        return "\n".join(_with_headers(lines)) + "\n"


def sample(name: str, value: float, labels: Mapping[str, Any] | None = None) -> str:
    text = ",".join(f'{key}="{_escape(str(label))}"' for key, label in (labels or {}).items())
    return f"{name}{{{text}}} {value:.10g}" if text else f"{name} {value:.10g}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _worker_samples(slot: WorkerSlot) -> Iterator[str]:
    label = {"worker": slot.worker_id}
    for state in WorkerState:
        yield sample("dart_worker_state", slot.state is state, label | {"state": state})
    values: dict[str, float] = {
        "dart_worker_version": slot.policy_version,
        "dart_worker_in_flight": slot.num_in_flight,
        "dart_worker_completions_total": slot.num_completed,
        "dart_worker_busy_seconds_total": slot.busy_s,
        "dart_worker_restarts_total": slot.restarts,
        "dart_worker_kv_pressure": slot.kv_pressure,
        "dart_worker_prefix_queries_total": slot.prefix_queries,
        "dart_worker_prefix_hits_total": slot.prefix_hits,
    }
    for name, value in values.items():
        yield sample(name, value, label)


_TYPES = {
    "dart_requests_total": ("counter", "completions asked for, by HTTP status"),
    "dart_resends_total": ("counter", "requests sent again because a worker went away"),
    "dart_aborts_total": ("counter", "requests taken from a worker for an update and sent again"),
    "dart_request_seconds": ("histogram", "from the arrival of a request to its answer"),
    "dart_queue_seconds": ("histogram", "of it, until a worker took it"),
    "dart_queue_size": ("gauge", "requests that no worker has taken yet"),
    "dart_routes_total": ("counter", "requests by how their worker was chosen"),
    "dart_desired_version": ("gauge", "policy version that the workers are brought to"),
    "dart_updates": ("gauge", "weight updates by state"),
    "dart_worker_state": ("gauge", "1 for the state that the worker is in"),
    "dart_worker_version": ("gauge", "policy version in service"),
    "dart_worker_in_flight": ("gauge", "requests at the worker"),
    "dart_worker_completions_total": ("counter", "requests answered"),
    "dart_worker_busy_seconds_total": ("counter", "time in which the model computed"),
    "dart_worker_restarts_total": ("counter", "times that the process was started again"),
    "dart_worker_kv_pressure": ("gauge", "share of the KV cache in use"),
    "dart_worker_prefix_queries_total": ("counter", "prompt tokens looked up in the prefix cache"),
    "dart_worker_prefix_hits_total": ("counter", "prompt tokens found there"),
}


def _with_headers(lines: Sequence[str]) -> Iterator[str]:
    """All samples of one metric stand together, after its HELP and TYPE."""
    for name, (kind, text) in _TYPES.items():
        own = [line for line in lines if _family(line) == name]
        if own:
            yield f"# HELP {name} {text}"
            yield f"# TYPE {name} {kind}"
            yield from own


def _family(line: str) -> str:
    name = line.split("{")[0].split(" ")[0]
    for suffix in ("_bucket", "_sum", "_count"):
        base = name.removesuffix(suffix)
        if base != name and _TYPES.get(base, ("",))[0] == "histogram":
            return base
    return name
