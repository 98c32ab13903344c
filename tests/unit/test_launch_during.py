"""Which weights are evaluated while training, and which are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dart_gui.config import Config
from dart_gui.errors import DataError
from dart_gui.launch import run_folder
from dart_gui.launch.during import EvalsDuring, best_of
from dart_gui.launch.pinned import pins, read_best
from dart_gui.launch.progress import Progress
from dart_gui.launch.run_folder import RunFolder
from dart_gui.metrics import MetricsWriter
from dart_gui.types import WeightsRef


class Run:
    """A run whose trainer publishes a version a train step."""

    def __init__(self, folder: RunFolder, config: Config, metrics: MetricsWriter) -> None:
        self.folder = folder
        self.config = config
        self.progress = Progress()
        self.latest: WeightsRef | None = None
        self.said: list[str] = []
        self.during = EvalsDuring(
            folder,
            config,
            latest_weights=self.latest_weights,
            metrics=metrics,
            say=self.said.append,
        )

    def latest_weights(self) -> WeightsRef | None:
        return self.latest

    def publish(self, version: int) -> None:
        path = self.folder.path / "weights" / f"step-{version:06d}"
        path.mkdir(parents=True)
        (path / "model.safetensors").write_text(f"weights {version}")
        self.latest = WeightsRef(policy_version=version, path=str(path))

    def train(self, version: int) -> None:
        self.publish(version)
        self.fold({"event": "train_step", "train_step": version, "policy_version": version})

    def fold(self, event: dict[str, Any]) -> None:
        self.progress.fold(event)

    def evaluated(self, version: int, rate: float, **changes: Any) -> None:
        event = {
            "event": "eval",
            "phase": "during",
            "temperature": 1.0,
            "policy_version": version,
            "train_step": version,
            "success_rate": rate,
            "num_episodes": 100,
        }
        self.fold(event | changes)
        self.during.settle(self.progress)

    def next_version(self) -> int | None:
        job = self.during.next_job(self.progress)
        return job.weights.policy_version if job and job.weights else None

    @property
    def best(self) -> int | None:
        return read_best(self.folder).get("policy_version")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    config = Config.model_validate({"eval": {"every": 3}})
    folder = run_folder.create(config, tmp_path / "r1")
    metrics = MetricsWriter(folder.metrics, "supervisor")
    yield Run(folder, config, metrics)
    metrics.close()


def test_every_so_many_versions_the_newest_is_evaluated(run: Run) -> None:
    due = []
    for version in range(1, 12):
        run.train(version)
        chosen = run.next_version()
        due.append(chosen)
        if chosen is not None:
            run.evaluated(chosen, 0.5)
    assert [version for version in due if version] == [3, 6, 9]


def test_an_evaluation_that_takes_long_skips_versions_and_keeps_its_own(run: Run) -> None:
    for version in (1, 2, 3):
        run.train(version)
    assert run.next_version() == 3
    for version in range(4, 12):
        run.train(version)
        assert run.next_version() == 3, "the one in hand, until it has a result"
    run.evaluated(3, 0.5)
    assert run.next_version() == 11, "the newest: there is no backlog"


def test_the_job_names_its_weights(run: Run) -> None:
    for version in (1, 2, 3):
        run.train(version)
    job = run.during.next_job(run.progress)
    assert job is not None
    path = run.folder.pinned / "v000003-step-000003"
    assert job.weights == WeightsRef(policy_version=3, path=str(path))
    assert job.title == "evaluating policy version 3"
    assert job.arguments[-4:] == ["--weights", str(path), "--policy-version", "3"]


def test_weights_that_are_newer_than_their_event_wait_for_it(run: Run) -> None:
    for version in (1, 2, 3):
        run.train(version)
    run.publish(4)  # its train_step event has not been read yet
    assert run.next_version() is None
    assert pins(run.folder) == []


def test_a_busy_ledger_is_read_again_later(run: Run) -> None:
    for version in (1, 2, 3):
        run.train(version)

    def busy() -> WeightsRef | None:
        raise DataError("the ledger is locked")

    run.during._latest_weights = busy
    assert run.next_version() is None
    run.during._latest_weights = run.latest_weights
    assert run.next_version() == 3


def test_an_evaluation_that_was_killed_is_found_again(run: Run) -> None:
    for version in (1, 2, 3):
        run.train(version)
    assert run.next_version() == 3
    job = run.during.unfinished_job()
    assert job is not None
    assert job.train_step == 3
    run.evaluated(3, 0.5)
    assert run.during.unfinished_job() is None


def test_the_best_is_kept_and_ties_go_to_the_earlier(run: Run) -> None:
    kept = []
    for index, rate in enumerate([0.4, 0.6, 0.6, 0.5, 0.7]):
        version = 3 * index + 3
        run.train(version)
        assert run.next_version() == version
        run.evaluated(version, rate)
        kept.append(run.best)
        assert pins(run.folder) == []
    assert kept == [3, 6, 6, 6, 15]
    assert run.said[0] == "checkpoints/best is policy version 3: 40.0 % of 100 held-out episodes"
    assert len(run.said) == 3


def test_evaluations_of_another_kind_do_not_compete(run: Run) -> None:
    run.evaluated(1, 0.9, temperature=0.0)
    run.evaluated(1, 0.9, phase="before")
    run.evaluated(1, 0.9, phase="floor", temperature=0.0)
    assert best_of(run.progress.evals, run.config) is None
    run.train(4)
    assert run.next_version() == 4
    run.evaluated(4, 0.1)
    assert run.best == 4


def test_the_final_weights_may_be_the_best(run: Run) -> None:
    run.train(3)
    assert run.next_version() == 3
    run.evaluated(3, 0.5)
    run.train(5)
    run.evaluated(5, 0.8, phase="after")
    run.during.settle_final(run.progress)
    assert run.best == 5
    run.during.settle_final(run.progress)
    assert run.best == 5
    assert pins(run.folder) == []


def test_without_evaluations_while_training_no_best_is_kept(run: Run) -> None:
    off = Config.model_validate({"eval": {"every": 0}})
    run.during._config = off
    run.train(50)
    assert run.next_version() is None
    run.evaluated(50, 0.8, phase="after")
    run.during.settle_final(run.progress)
    assert run.best is None


def test_an_evaluation_that_fails_for_good_is_given_up(run: Run) -> None:
    run.train(3)
    assert run.next_version() == 3
    run.during.give_up("its process ended with exit code 1")
    assert pins(run.folder) == []
    run.fold({"event": "eval_given_up", "policy_version": 3})
    run.train(4)
    assert run.next_version() is None, "not at once again"
    run.train(6)
    assert run.next_version() == 6
    assert "policy version 3 is given up: its process ended" in run.said[0]
