"""OSWorld's result layout, written and read here alone.

    OUT/<action space>/<observation type>/<model>/<domain>/<task id>/
        traj.jsonl      one line per action, with OSWorld's keys
        result.txt      the reward; not there where the infrastructure failed
        step_0_*.png    the first screen, and step_N_*.png after each action of model call N
        episode.json    what OSWorld has no place for: seed, stop reason, success, times

The action space is the agent's name, the observation type ``screenshot``. Further held-out instances of
a task are folders ``<task id>.i2``, ``.i3``; further attempts at one ``<task id>.r2``, ...: tools that
walk OSWorld's folders count each as an example of its domain. A folder appears whole, by one rename.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dart_gui.env.suites import EVAL_SEEDS
from dart_gui.errors import ConfigError, DataError
from dart_gui.files import write_whole, writing
from dart_gui.runner.drawing import reaches_environment
from dart_gui.runner.episode import Episode
from dart_gui.runner.evaluate import Outcome
from dart_gui.runner.recorder import Recorder
from dart_gui.runner.trials import Played, Trial
from dart_gui.types import Action, CallUser, Finished, Observation, Step, StopReason, Wait

OBSERVATION_TYPE = "screenshot"
_UNFINISHED = ".unfinished"
_SETTINGS = "args.json"
_WORDS: Mapping[type[Any], str] = {Finished: "DONE", CallUser: "FAIL", Wait: "WAIT"}
_ACTION = TypeAdapter[Action](Action)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What the folder of one trial says."""

    trial: Trial
    outcome: Outcome
    wall_s: float
    message: str  # what failed; empty otherwise


class ResultFolder:
    """The results of one model on one suite under ``out``.

    Args:
        settings: what results depend on; JSON-ready. Those of another evaluation are not mixed in.
        domain_of: the domain of a task id.
    """

    def __init__(
        self,
        out: Path,
        *,
        settings: Mapping[str, Any],
        action_space: str,
        model: str,
        domain_of: Callable[[str], str],
    ) -> None:
        self.out = out
        self.settings = dict(settings)
        self._domain_of = domain_of
        self.root = out / folder_name(action_space) / OBSERVATION_TYPE / folder_name(model)

    def open(self) -> None:
        """Make the folder, or take up one that is there. The caller holds its lock.

        Raises:
            ConfigError: its results were made with other settings.
            DataError: it cannot be read or written.
        """
        self.check_settings()
        path = self.out / _SETTINGS
        with writing(f"the results in {self.out}"):
            self.root.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(
                self.out / _UNFINISHED, ignore_errors=True
            )  # of a process that was killed
        write_whole(path, json.dumps(self.settings, indent=1) + "\n")

    def close(self) -> None:
        """Nothing is being written any more."""
        shutil.rmtree(self.out / _UNFINISHED, ignore_errors=True)

    def check_settings(self) -> None:
        """Writes nothing. Raises as :meth:`open`."""
        path = self.out / _SETTINGS
        if not path.exists():
            return
        found = _read_json(path)
        keys = sorted({*found, *self.settings})
        changed = [
            f"{key} was {found.get(key)!r}, now {self.settings.get(key)!r}"
            for key in keys
            if found.get(key) != self.settings.get(key)
        ]
        if changed:
            raise ConfigError(
                f"{self.out} holds the results of another evaluation: {'; '.join(changed)}. "
                "Give another --out, or the same settings."
            )

    def place(self, trial: Trial) -> Path:
        task_id, instance = trial.task.task_id, EVAL_SEEDS.index(trial.task.seed)
        domain = self._domain_of(task_id)
        _, _, rest = task_id.partition("/")
        name = folder_name(rest.removeprefix(f"{domain}/"))
        name += f".i{instance + 1}" if instance else ""
        name += f".r{trial.repeat + 1}" if trial.repeat else ""
        return self.root / folder_name(domain) / name

    def is_finished(self, trial: Trial) -> bool:
        """An attempt that the infrastructure failed is not: it is played again."""
        return (self.place(trial) / "result.txt").exists()

    def write(self, played: Played) -> Path:
        """File an episode in place of one that the infrastructure failed.

        Raises:
            DataError: the disk is full or cannot be written; nothing of the episode is there then.
        """
        place = self.place(played.trial)
        draft = self.out / _UNFINISHED / uuid.uuid4().hex
        with writing(f"the results of {played.trial.task.task_id} in {place}"):
            draft.mkdir(parents=True)
            try:
                _write_files(draft, played)
                place.parent.mkdir(parents=True, exist_ok=True)
                if place.exists():
                    shutil.rmtree(place)
                os.replace(draft, place)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return place

    def read(self, trial: Trial) -> Score | None:
        """The score of a trial, also one that OSWorld's own tools wrote; None where there is none.

        Raises:
            DataError: a file of the folder is not what it should be.
        """
        place = self.place(trial)
        if not (place / "episode.json").exists() and not self.is_finished(trial):
            return None
        try:
            return _score(place, trial)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{place} does not hold the result of an episode: {error!r}. Delete the folder to have "
                "it played again."
            ) from None


def folder_name(text: str) -> str:
    """``text`` as the name of one folder, in which it can be recognised.

    >>> folder_name("Qwen/Qwen2.5-VL-7B-Instruct"), folder_name("../up")
    ('Qwen_Qwen2.5-VL-7B-Instruct', '_.._up')
    """
    name = re.sub(r"[^\w.@+=-]", "_", text)
    return f"_{name}" if name.startswith(".") or not name else name


# --- writing -------------------------------------------------------------------------------


def _write_files(folder: Path, played: Played) -> None:
    episode = played.episode
    recorder = played.recorder or _Nothing
    shots = _Screenshots(folder)
    if recorder.observations:
        shots.save(0, recorder.acted_at[0], recorder.observations[0])
    lines = list(_lines(episode, recorder, shots))
    if episode.evaluation is None:
        lines.append({"Error": episode.message})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "traj.jsonl").write_text(text, encoding="utf-8")
    (folder / "episode.json").write_text(json.dumps(_facts(played), indent=1) + "\n", "utf-8")
    if episode.evaluation is not None:
        (folder / "result.txt").write_text(f"{episode.evaluation.reward}\n", encoding="ascii")


_Nothing = Recorder(env=None)  # type: ignore[arg-type]  # of an attempt that had no environment


class _Screenshots:
    """Names each file after the step and the moment of its action, and never two the same."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.newest = ""

    def save(self, step_num: int, at: float, observation: Observation) -> None:
        stem = f"step_{step_num}_{_stamp(at)}"
        path, number = self._folder / f"{stem}.png", 1
        while path.exists():
            number += 1
            path = self._folder / f"{stem}_{number}.png"
        path.write_bytes(observation.screenshot)
        self.newest = path.name


def _lines(episode: Episode, recorder: Recorder, shots: _Screenshots) -> Iterator[dict[str, Any]]:
    """OSWorld's line of each action; one without an action where a reply could not be read."""
    position = 0  # in the recorder: of the newest screen
    for step in episode.steps:
        is_last = step is episode.steps[-1]
        for index, action in enumerate(step.actions or [None]):
            at = recorder.acted_at[position] + step.model_s
            if action is not None and reaches_environment(action):
                position += 1
                at = recorder.acted_at[position]
                shots.save(step.index + 1, at, recorder.observations[position])
            ends = is_last and index == max(0, len(step.actions) - 1)
            yield {
                "step_num": step.index + 1,
                "action_timestamp": _stamp(at),
                "action": _action(action),
                "response": step.completion.text,
                "reward": 0,  # OSWorld scores the end alone: result.txt
                "done": ends and episode.stop_reason in (StopReason.DONE, StopReason.INFEASIBLE),
                "info": _info(step, action),
                "screenshot_file": shots.newest,
            }


def _action(action: Action | None) -> Any:
    """OSWorld's words for the actions that it has words for, ours as JSON else."""
    if action is None:
        return None
    return _WORDS.get(type(action)) or _ACTION.dump_python(action, mode="json")


def _info(step: Step, action: Action | None) -> dict[str, Any]:
    info: dict[str, Any] = {
        name: value
        for name in ("parse_error", "action_error")
        if (value := getattr(step, name)) is not None
    }
    if isinstance(action, Finished):
        info |= {"done": True} | ({"answer": action.text} if action.text else {})
    if isinstance(action, CallUser):
        info["fail"] = True
    return info


def _facts(played: Played) -> dict[str, Any]:
    episode, trial = played.episode, played.trial
    outcome = Outcome.of(episode)
    return {
        "task_id": trial.task.task_id,
        "seed": trial.task.seed,
        "repeat": trial.repeat,
        "instruction": episode.instruction,
        "stop_reason": outcome.stop_reason.value,
        "reward": outcome.reward,
        "success": outcome.success,
        "num_steps": outcome.num_steps,
        "message": episode.message,
        "num_retries": played.num_retries,
        "started_at": episode.started_at,
        "wall_s": round(episode.ended_at - episode.started_at, 3),
        "model_s": round(sum(step.model_s for step in episode.steps), 3),
        "env_s": round(sum(step.env_s for step in episode.steps), 3),
    }


def _stamp(at: float) -> str:
    """OSWorld's form of a time; UTC."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y%m%d@%H%M%S%f")


# --- reading -------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}. Give another --out.") from None
    if not isinstance(tree, dict):
        raise DataError(f"{path} is not a JSON object. Give another --out.")
    return tree


def _score(place: Path, trial: Trial) -> Score:
    facts_path, result_path = place / "episode.json", place / "result.txt"
    reward = float(result_path.read_text("ascii")) if result_path.exists() else None
    if reward is not None and not 0.0 <= reward <= 1.0:
        raise ValueError(f"result.txt has {reward}, expected a number in [0, 1]")
    if not facts_path.exists():
        assert reward is not None
        return _foreign_score(place, trial, reward)
    facts = json.loads(facts_path.read_text(encoding="utf-8"))
    outcome = Outcome(
        stop_reason=StopReason(facts["stop_reason"]),
        num_steps=int(facts["num_steps"]),
        reward=reward,
        success=bool(facts["success"]) and reward is not None,
    )
    return Score(
        trial=trial,
        outcome=outcome,
        wall_s=float(facts["wall_s"]),
        message=str(facts["message"]),
    )


def _foreign_score(place: Path, trial: Trial, reward: float) -> Score:
    """Of a folder that OSWorld's own tools wrote: why it ended is read off the last action."""
    rows = [json.loads(line) for line in (place / "traj.jsonl").read_text("utf-8").splitlines()]
    last = rows[-1].get("action") if rows else None
    ended = {"DONE": StopReason.DONE, "FAIL": StopReason.INFEASIBLE}
    outcome = Outcome(
        stop_reason=ended.get(last, StopReason.MAX_STEPS)
        if isinstance(last, str)
        else StopReason.MAX_STEPS,
        num_steps=len({row.get("step_num") for row in rows if "step_num" in row}),
        reward=reward,
        success=reward >= 1.0,
    )
    return Score(trial=trial, outcome=outcome, wall_s=0.0, message="")
