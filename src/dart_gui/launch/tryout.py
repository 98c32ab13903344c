"""``dart-gui eval`` and ``dart-gui play``: a model tried out, in a folder beside the runs."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from dart_gui import config as config_module
from dart_gui.config import Config
from dart_gui.errors import ConfigError
from dart_gui.files import write_whole
from dart_gui.launch import pinned, preflight, run_folder
from dart_gui.launch.commands import print_evals, resolved, runs_dir, shown, supervision
from dart_gui.launch.plan import EvalJob
from dart_gui.launch.progress import MetricsTail
from dart_gui.launch.run_folder import RunFolder
from dart_gui.launch.signals import StopSignals
from dart_gui.launch.supervisor import Outcome
from dart_gui.types import Task


def choose_model(
    config_path: str | None,
    run: str | None,
    overrides: Sequence[str],
    *,
    checkpoint: str | None = None,
) -> tuple[Config, int]:
    """The configuration and the train step of a checkpoint of a run, the newest where none is named,
    or of a TOML file.

    Raises:
        ConfigError: there is no such run or checkpoint.
    """
    if run is None:
        if checkpoint is not None:
            raise ConfigError(
                f"--checkpoint {checkpoint} needs the run that it belongs to: --run latest"
            )
        return preflight.absolute(config_module.load(config_path, overrides)), 0
    folder = run_folder.find(run, runs_dir(overrides, config_path))
    config = resolved(folder, overrides)
    if any(each.startswith("model.path=") for each in overrides):
        return config, 0
    path, train_step = find_checkpoint(folder, checkpoint)
    if path is None:
        return config, 0
    model = config.model.model_copy(update={"path": str(path)})
    return config.model_copy(update={"model": model}), train_step


def find_checkpoint(folder: RunFolder, name: str | None) -> tuple[Path | None, int]:
    """(folder, train step) of the checkpoint of this name; of the newest one, if any, for None."""
    checkpoints = sorted((folder.path / "checkpoints").glob("step-*"))
    if name is None:
        return (checkpoints[-1], _step_of(checkpoints[-1])) if checkpoints else (None, 0)
    if name == pinned.BEST and (best := pinned.read_best(folder)):
        # The folder behind the link: the run may find a better one while this one is evaluated.
        return folder.best.resolve(), int(best.get("train_step", 0))
    for path in checkpoints:
        if path.name == name:
            return path, _step_of(path)
    known = ", ".join(path.name for path in checkpoints) or "none"
    hint = (
        " A run keeps its best one where it evaluates while training (eval.every)."
        if name == pinned.BEST
        else ""
    )
    raise ConfigError(f"run {folder.run_id} has no checkpoint {name}; it has: {known}.{hint}")


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def temporary_folder(config: Config, kind: str) -> RunFolder:
    """Beside the runs, where none of them is taken for it: ``runs/eval/<id>``."""
    config = preflight.check(config)
    place = Path(config.run.dir) / kind / run_folder.new_run_id(time.time())
    return run_folder.create(config, place.absolute(), latest=False)


def run_eval(
    console: Console,
    config: Config,
    *,
    temperature: float,
    use_random: bool,
    train_step: int,
) -> int:
    job = EvalJob(phase="eval", temperature=temperature, train_step=train_step)
    if use_random:
        job = EvalJob(phase="floor", temperature=0.0, train_step=0)
    folder = temporary_folder(config, "eval")
    config = folder.load_config()
    console.print(f"evaluating {config.model.path} in {shown(folder.path)}", highlight=False)
    with run_folder.locked(folder), StopSignals() as signals:
        with supervision(console, folder, config, signals) as supervisor:
            outcome = supervisor.evaluate([job])
        if outcome is Outcome.INTERRUPTED:
            return signals.exit_code
    evals = [event for event in MetricsTail(folder.metrics).read() if event.get("event") == "eval"]
    write_whole(folder.path / "eval.json", json.dumps(evals, indent=1) + "\n")
    print_evals(console, evals)
    return 0


def run_play(
    console: Console,
    config: Config,
    task: Task,
    *,
    temperature: float,
    use_random: bool,
    out_dir: str | None,
) -> int:
    config = config.model_copy(
        update={
            "env": config.env.model_copy(update={"tasks": [task.task_id], "num_envs": 1}),
            "runner": config.runner.model_copy(update={"num_slots": 1}),
        }
    )
    folder = temporary_folder(config, "play")
    config = folder.load_config()
    out = Path(out_dir).absolute() if out_dir else folder.path / "episode"
    arguments = ["--task", task.task_id, "--seed", str(task.seed)]
    arguments += ["--temperature", f"{temperature:g}", "--out", str(out)]
    arguments += ["--random"] if use_random else []
    with run_folder.locked(folder), StopSignals() as signals:
        with supervision(console, folder, config, signals) as supervisor:
            outcome = supervisor.play(arguments, needs_service=not use_random)
        if outcome is Outcome.INTERRUPTED:
            return signals.exit_code
    print_episode(console, folder.status("player"))
    return 0


def print_episode(console: Console, episode: Mapping[str, object]) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    say(f"instruction: {episode.get('instruction')}", "bold")
    steps = episode.get("steps")
    for index, step in enumerate(steps if isinstance(steps, list) else []):
        say(f"{index}  {step['thought']}", "dim")
        for action in step["actions"]:
            say(f"   {action}")
        if step["problem"]:
            say(f"   problem: {step['problem']}", "yellow")
    style = "green" if episode.get("success") else "red"
    say(
        f"{'success' if episode.get('success') else 'no success'}, reward {episode.get('reward')}, "
        f"ended by {episode.get('stop_reason')}",
        style,
    )
    say(f"pictures: {episode.get('sheet')}, {episode.get('report')}")


def parse_task(text: str, suite_name: str) -> str:
    """``click-test`` and ``miniwob/click-test`` are the same task."""
    from dart_gui.env.suites import get_suite

    suite = get_suite(suite_name)
    return suite.check(text if "/" in text else f"{suite.name}/{text}")


def check_temperature(value: float) -> float:
    if value < 0:
        raise ConfigError(f"--temperature {value:g} is negative; 0 is greedy decoding")
    return value
