from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

from dart_gui import metrics
from dart_gui.metrics import MetricsWriter


def test_one_line_an_event(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "metrics.jsonl"
    writer = MetricsWriter(path, "trainer", clock=lambda: 12.34567)
    writer.log("train_step", loss=0.5, per_task={"a": 1})
    writer.close()
    assert json.loads(path.read_text()) == {
        "at": 12.346,
        "process": "trainer",
        "event": "train_step",
        "loss": 0.5,
        "per_task": {"a": 1},
    }


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path, "trainer", clock=lambda: 0.0)
    writer.log("x", a=float("nan"), b=[float("inf"), 1.0], c={"d": -float("inf")})
    writer.close()
    (event,) = metrics.read(path)
    assert (event["a"], event["b"], event["c"]) == (None, [None, 1.0], {"d": None})


def test_reading_passes_over_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert list(metrics.read(path)) == []
    path.write_text('{"event":"a"}\n{"event":"b\n{"event":"c"}\n')
    assert [event["event"] for event in metrics.read(path)] == ["a", "c"]


def _write(path: Path, process: str) -> None:
    writer = MetricsWriter(path, process)
    for i in range(200):
        writer.log("x", i=i, padding="y" * 500)
    writer.close()


def test_processes_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write, args=(path, f"p{i}")) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    events = list(metrics.read(path))
    assert len(events) == 400
    for name in ("p0", "p1"):
        assert [event["i"] for event in events if event["process"] == name] == list(range(200))
