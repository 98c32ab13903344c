"""OSWorld's layout: what an episode's folder holds, when it is there, and what is read back."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from dart_gui.agent.agent import Agent
from dart_gui.agent.geometry import ImageLimits
from dart_gui.config import AgentConfig
from dart_gui.env.suites import eval_seed
from dart_gui.errors import ConfigError, DataError
from dart_gui.launch.osworld_results import ResultFolder
from dart_gui.runner.episode import EpisodeLimits
from dart_gui.runner.fakes import (
    ManualClock,
    ScriptedCluster,
    ScriptedEnv,
    ScriptedPolicy,
    screenshot,
    settle,
)
from dart_gui.runner.trials import Played, Players, Trial
from dart_gui.types import StopReason, Task

SETTINGS = {"model": "org/m", "temperature": 0.0}
CLICK = "Thought: Click.\nAction: click(start_box='(57,103)')"
TWO = "Action: click(start_box='(1,2)')\n\ntype(content='hé')"
TRIAL = Trial(Task(task_id="osw/chrome/12-ab", seed=eval_seed(0)))


def results(tmp_path: Path, **changes: Any) -> ResultFolder:
    folder = ResultFolder(
        tmp_path / "out",
        settings=SETTINGS | changes,
        action_space="ui-tars",
        model="org/m",
        domain_of=lambda task_id: task_id.split("/")[1],
    )
    folder.open()
    return folder


async def played(*replies: str, trial: Trial = TRIAL, max_attempts: int = 1, **env: Any) -> Played:
    clock = ManualClock()
    clock_start = clock.now()
    ended: list[Played] = []

    async def on_end(each: Played) -> None:
        ended.append(each)

    players = Players(
        cluster=ScriptedCluster(lambda: ScriptedEnv(**env), num_envs=1),
        policy=ScriptedPolicy(replies=list(replies)),
        agent=Agent(ImageLimits(3136, 12845056), AgentConfig()),
        limits=EpisodeLimits(
            max_steps=3, max_parse_errors=1, timeout_s=60.0, temperature=0.0, max_tokens=64
        ),
        clock=clock,
        max_attempts=max_attempts,
    )
    running = asyncio.create_task(players.play_all([trial], 1, on_end))
    await clock.advance(30.0)
    await settle()
    await running
    assert clock.now() >= clock_start
    (only,) = ended
    return only


def lines(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "traj.jsonl").read_text().splitlines()]


async def test_the_files_of_an_episode(tmp_path: Path) -> None:
    folder = results(tmp_path)
    assert not folder.is_finished(TRIAL)
    place = folder.write(await played(TWO, "what?", "Action: finished(content='42')", reward=0.5))
    assert place == tmp_path / "out" / "ui-tars" / "screenshot" / "org_m" / "chrome" / "12-ab"
    assert folder.is_finished(TRIAL)
    assert (place / "result.txt").read_text() == "0.5\n"
    rows = lines(place)
    assert [row["step_num"] for row in rows] == [1, 1, 2, 3]
    assert set(rows[0]) == {
        *("step_num", "action_timestamp", "action", "response"),
        *("reward", "done", "info", "screenshot_file"),
    }
    assert rows[0]["action"]["kind"] == "click"
    assert rows[1]["action"] == {"text": "hé", "kind": "type"}
    assert rows[0]["response"] == rows[1]["response"] == TWO
    assert rows[2]["action"] is None
    assert "parse_error" in rows[2]["info"]
    assert (rows[3]["action"], rows[3]["info"]) == ("DONE", {"done": True, "answer": "42"})
    assert [row["done"] for row in rows] == [False, False, False, True]
    # The screens after the reset and after each of the two actions; the rest changed nothing.
    shots = sorted(place.glob("step_*.png"), key=lambda path: (path.name[:6], len(path.name)))
    assert [path.name[:6] for path in shots] == ["step_0", "step_1", "step_1"]
    assert [(place / row["screenshot_file"]).read_bytes() for row in rows] == [
        *(screenshot(1), screenshot(2), screenshot(2), screenshot(2))
    ]
    assert shots[0].read_bytes() == screenshot(0)


async def test_what_is_read_back(tmp_path: Path) -> None:
    folder = results(tmp_path)
    assert folder.read(TRIAL) is None
    folder.write(await played(CLICK, terminate_after=2, reward=1.0))
    score = results(tmp_path).read(TRIAL)
    assert score is not None
    assert (score.outcome.reward, score.outcome.success) == (1.0, True)
    assert (score.outcome.num_steps, score.outcome.stop_reason) == (2, StopReason.DONE)


async def test_an_infrastructure_failure_is_no_zero_and_is_replaced(tmp_path: Path) -> None:
    folder = results(tmp_path)
    place = folder.write(await played(CLICK, breaks_at="evaluate", terminate_after=1))
    assert not (place / "result.txt").exists()
    assert not folder.is_finished(TRIAL)
    assert lines(place)[-1] == {"Error": "the page crashed in evaluate"}
    score = folder.read(TRIAL)
    assert score is not None
    assert (score.outcome.reward, score.outcome.success) == (None, False)
    assert score.outcome.stop_reason is StopReason.ENV_ERROR
    folder.write(await played(CLICK, terminate_after=1))
    assert folder.is_finished(TRIAL)
    assert "Error" not in (place / "traj.jsonl").read_text()


async def test_an_environment_that_never_came(tmp_path: Path) -> None:
    place = results(tmp_path).write(await played(CLICK, breaks_at="reset", max_attempts=2))
    assert lines(place) == [{"Error": "the page crashed in reset"}]
    assert json.loads((place / "episode.json").read_text())["num_retries"] == 1


async def test_instances_and_repeats_are_folders_of_their_own(tmp_path: Path) -> None:
    folder = results(tmp_path)
    names = {
        (index, repeat): folder.place(
            Trial(Task(task_id="osw/chrome/12-ab", seed=eval_seed(index)), repeat)
        ).name
        for index in (0, 2)
        for repeat in (0, 1)
    }
    assert names == {
        (0, 0): "12-ab",
        (0, 1): "12-ab.r2",
        (2, 0): "12-ab.i3",
        (2, 1): "12-ab.i3.r2",
    }


async def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = results(tmp_path)
    ended = await played(CLICK, terminate_after=1)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError, match="No space left"):
        folder.write(ended)
    monkeypatch.undo()
    assert not folder.place(TRIAL).exists()
    assert list((tmp_path / "out" / ".unfinished").iterdir()) == []
    assert not results(tmp_path).is_finished(TRIAL)


def test_results_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    results(tmp_path)
    with pytest.raises(ConfigError, match=r"temperature was 0\.0, now 1\.0"):
        results(tmp_path, temperature=1.0)


def test_a_folder_of_osworlds_own_tools_counts(tmp_path: Path) -> None:
    folder = results(tmp_path)
    place = folder.place(TRIAL)
    place.mkdir(parents=True)
    rows = [{"step_num": 1, "action": "pyautogui.click(1, 2)"}, {"step_num": 2, "action": "FAIL"}]
    (place / "traj.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "result.txt").write_text("1.0\n")
    score = folder.read(TRIAL)
    assert score is not None
    assert score.outcome.success
    assert (score.outcome.num_steps, score.outcome.stop_reason) == (2, StopReason.INFEASIBLE)


@pytest.mark.parametrize("text", ["", "one", "1.5", "nan"])
def test_a_result_that_is_none(tmp_path: Path, text: str) -> None:
    folder = results(tmp_path)
    folder.place(TRIAL).mkdir(parents=True)
    (folder.place(TRIAL) / "result.txt").write_text(text)
    with pytest.raises(DataError, match="Delete the folder"):
        folder.read(TRIAL)
