"""One training run after another, each at most once: what is finished is kept."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.learning.cpu import MeterThread
from benchmarks.learning.outcome import CPU_FILE, Outcome, load, read_outcome
from benchmarks.results import ROOT
from dart_gui import config as config_module
from dart_gui.config import Config
from dart_gui.launch import preflight
from dart_gui.launch.run_folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """``dart-gui train CONFIG`` with overrides, in a folder of a fixed name."""

    name: str
    config_path: Path
    overrides: tuple[str, ...]  # section.key=value
    runs_dir: Path

    @property
    def folder(self) -> RunFolder:
        return RunFolder((self.runs_dir / self.name).absolute())

    def config(self) -> Config:
        return preflight.absolute(config_module.load(self.config_path, self.overrides))

    def arguments(self) -> list[str]:
        """Of ``dart-gui``: a new run, or the one that was begun."""
        if self.folder.config.exists():
            return ["train", "--resume", str(self.folder.path)]
        flags = [f"--{override}" for override in self.overrides]
        return ["train", str(self.config_path), "--run-dir", str(self.folder.path), *flags]


def specs(
    config_path: Path, seeds: Sequence[int], overrides: Sequence[str], runs_dir: Path
) -> list[RunSpec]:
    """A run for each seed, and the first of them again with learning rate 0."""
    wanted = [(f"seed-{seed}", [f"run.seed={seed}"]) for seed in seeds]
    wanted += [("control", [f"run.seed={seeds[0]}", "train.lr=0"])]
    return [
        RunSpec(
            name=name,
            config_path=config_path,
            overrides=(*overrides, *own),
            runs_dir=runs_dir,
        )
        for name, own in wanted
    ]


def fingerprint(config: Config) -> str:
    """sha256 of what decides the result: the configuration without its places, and the weights."""
    places = {
        "run": config.run.model_copy(update={"dir": ""}),
        "model": config.model.model_copy(update={"path": ""}),
    }
    digest = hashlib.sha256(config_module.dump(config.model_copy(update=places)).encode())
    for file in sorted(Path(config.model.path).iterdir()):
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def finished(spec: RunSpec, kept: Path) -> Outcome | None:
    """The kept outcome of this very run; None where it is still to be made.

    Raises:
        SystemExit: what is kept under its name is of other settings.
    """
    outcome = load(kept / f"{spec.name}.json")
    if outcome is not None and outcome.fingerprint != fingerprint(spec.config()):
        raise SystemExit(
            f"{kept / spec.name}.json was made with another configuration or model. Give another "
            f"--out, or remove it (and {spec.folder.path}) to make the run anew."
        )
    return outcome


def make(spec: RunSpec, kept: Path) -> Outcome:
    """Train, or go on training, until the run has ended; keep its outcome.

    Raises:
        SystemExit: the run was stopped or failed; the same command goes on with it.
    """
    config = spec.config()
    if spec.folder.config.exists() and _settings(spec.folder.load_config()) != _settings(config):
        raise SystemExit(
            f"{spec.folder.path} was begun with another configuration. Give another --runs, or "
            "remove it to make the run anew."
        )
    code = _train(spec)
    if code != 0:
        raise SystemExit(
            f"the run {spec.name} ended with exit code {code}. The same command goes on with it; "
            f"its logs are in {spec.folder.path}/logs."
        )
    outcome = read_outcome(spec.folder, config, name=spec.name, fingerprint=fingerprint(config))
    outcome.save(kept)
    return outcome


def _settings(config: Config) -> Config:
    """Where its folder lies does not matter to a run."""
    return config.model_copy(update={"run": config.run.model_copy(update={"dir": ""})})


def _train(spec: RunSpec) -> int:
    child = subprocess.Popen([sys.executable, "-m", "dart_gui", *spec.arguments()], cwd=ROOT)
    with MeterThread(child.pid, spec.folder.path / CPU_FILE):
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:
                # The same Ctrl-C reached the child, which saves what there is to save.
                continue
            except SystemExit:
                child.terminate()
                child.wait()
                raise
