"""The Prometheus text, read back by its rules; and that of vLLM."""

import re

from dart_gui.rollout.engines.vllm_api import parse_load
from dart_gui.rollout.states import WorkerSlot, WorkerState
from dart_gui.rollout.telemetry import Histogram, Telemetry, sample
from dart_gui.rollout.updates import UpdateJob, UpdateState
from dart_gui.types import WeightsRef

LINE = re.compile(r'([a-z_]+)(\{(?:[a-z]+="(?:[^"\\\n]|\\.)*",?)+\})? (\S+)')


def read(text):
    """Samples by name and labels; every one stands under its TYPE, families stand together."""
    samples, seen, family = {}, [], None
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            family = line.split()[2]
            assert family not in seen
            seen.append(family)
        elif not line.startswith("#"):
            name, labels, value = LINE.fullmatch(line).groups()
            assert name.startswith(family), line
            assert name + (labels or "") not in samples
            samples[name + (labels or "")] = float(value)
    return samples


def test_everything_is_there_and_well_formed():
    telemetry = Telemetry()
    telemetry.answers[200] += 3
    telemetry.answers[429] += 1
    telemetry.request_s.add(0.3)
    telemetry.request_s.add(1000.0)
    slots = [
        WorkerSlot(worker_id="w0", state=WorkerState.READY, policy_version=4, num_in_flight=2),
        WorkerSlot(worker_id='w"1', state=WorkerState.DEAD, kv_pressure=0.5),
    ]
    weights = WeightsRef(policy_version=4, path="/w")
    job = UpdateJob(
        update_id="update-4", weights=weights, state=UpdateState.DONE, created_at=1.0, ended_at=2.0
    )
    text = telemetry.render(
        slots, [job], queue_size=7, sticky={"sticky": 5, "moved": 1}, desired_version=4
    )
    found = read(text)
    assert found['dart_requests_total{status="200"}'] == 3
    assert found['dart_requests_total{status="429"}'] == 1
    assert found['dart_request_seconds_bucket{le="0.25"}'] == 0
    assert found['dart_request_seconds_bucket{le="0.5"}'] == 1
    assert found['dart_request_seconds_bucket{le="+Inf"}'] == 2
    assert found["dart_request_seconds_count"] == 2
    assert found["dart_request_seconds_sum"] == 1000.3
    assert found["dart_queue_size"] == 7
    assert found['dart_routes_total{kind="sticky"}'] == 5
    assert found['dart_updates{state="done"}'] == 1
    assert found['dart_updates{state="rolling"}'] == 0
    assert found['dart_worker_state{worker="w0",state="ready"}'] == 1
    assert found['dart_worker_state{worker="w0",state="dead"}'] == 0
    assert found['dart_worker_kv_pressure{worker="w\\"1"}'] == 0.5


def test_a_bound_belongs_to_its_bucket():
    histogram = Histogram((1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 3.0):
        histogram.add(value)
    assert list(histogram.samples("x")) == [
        'x_bucket{le="1"} 1',
        'x_bucket{le="2"} 3',
        'x_bucket{le="+Inf"} 4',
        "x_sum 7.5",
        "x_count 4",
    ]


def test_labels_are_escaped():
    assert sample("x", 1, {"a": 'b"\\\n'}) == 'x{a="b\\"\\\\\\n"} 1'


def test_the_load_of_a_vllm_server():
    load = parse_load(
        "# HELP vllm:kv_cache_usage_perc x\n"
        'vllm:kv_cache_usage_perc{engine="0",model_name="policy"} 0.25\n'
        'vllm:kv_cache_usage_perc{engine="1",model_name="policy"} 0.5\n'
        'vllm:prefix_cache_queries_total{engine="0",model_name="policy"} 46085.0\n'
        'vllm:prefix_cache_queries_created{engine="0"} 1.7955705972044475e+09\n'
        'vllm:prefix_cache_hits_total{engine="0",model_name="policy"} 2.5e+04\n'
    )
    assert (load.kv_pressure, load.prefix_queries, load.prefix_hits) == (0.5, 46085, 25000)
    assert parse_load("").kv_pressure == 0.0
