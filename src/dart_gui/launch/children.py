"""How the modules of a run are started as processes of this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dart_gui.config import Config
from dart_gui.launch.orphan import SUPERVISOR_PID
from dart_gui.launch.process import GroupHandle, Handle, ProcessSpec
from dart_gui.launch.run_folder import RunFolder

Spawner = Callable[[Sequence[str], Path], Handle]
"""(arguments of ``dart-gui``, log) -> the started process."""


def local_spawner(config: Config) -> Spawner:
    env = child_environment(config, os.environ)

    def spawn(arguments: Sequence[str], log: Path) -> Handle:
        return GroupHandle([sys.executable, "-m", "dart_gui", *arguments], log, env)

    return spawn


def child_environment(config: Config, environ: Mapping[str, str]) -> dict[str, str]:
    """Of every child. Threads are bounded before torch is imported: more of them than idle cores
    makes each operation many times slower, since they wait for each other by spinning."""
    source = str(Path(__file__).resolve().parents[2])
    paths = [source, *filter(None, [environ.get("PYTHONPATH")])]
    return {
        **environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(config.launch.threads),
        "MKL_NUM_THREADS": str(config.launch.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
        "HF_HUB_OFFLINE": environ.get("HF_HUB_OFFLINE", "1"),
        SUPERVISOR_PID: str(os.getpid()),
    }


class Children:
    """Makes the :class:`ProcessSpec` of each module of one run."""

    def __init__(self, folder: RunFolder, config: Config, spawn: Spawner) -> None:
        self._folder = folder
        self._config = config
        self._spawn = spawn

    def rollout(self) -> ProcessSpec:
        return self._module("rollout", finished=lambda: False)

    def runner(self) -> ProcessSpec:
        return self._module("runner", finished=lambda: False)

    def trainer(self) -> ProcessSpec:
        """Finished only when it says so: it also exits with 0 when it is told to stop."""
        return self._module(
            "trainer", finished=lambda: self._folder.status("trainer").get("finished") is True
        )

    def evaluator(self, arguments: Sequence[str], *, vital: bool = True) -> ProcessSpec:
        return replace(self._module("evaluator", *arguments), vital=vital)

    def player(self, arguments: Sequence[str]) -> ProcessSpec:
        return self._module("player", *arguments)

    def _module(
        self, name: str, *arguments: str, finished: Callable[[], bool] = lambda: True
    ) -> ProcessSpec:
        log = self._folder.log(name)
        command = [name, "--run-dir", str(self._folder.path), *arguments]
        return ProcessSpec(
            name=name,
            spawn=lambda: self._spawn(command, log),
            log=log,
            max_restarts=self._config.launch.max_restarts,
            stop_timeout_s=self._config.launch.stop_timeout_s,
            finished=finished,
        )
