"""What comes from outside and is not what it should be: screenshots and model replies. The runner goes
on, the attempt is counted under its reason, and what is stored can be read back."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
from PIL import Image

from dart_gui.agent.agent import Agent
from dart_gui.config import AgentConfig, CurationConfig, DataConfig
from dart_gui.data.manager import DataManager
from dart_gui.data.sampler import RoundRobinSampler
from dart_gui.errors import ContextLengthError
from dart_gui.rollout.client import parse_completion
from dart_gui.runner.drawing import describe
from dart_gui.runner.episode import Episode, EpisodeLimits, run_episode
from dart_gui.runner.fakes import ManualClock, ScriptedEnv, ScriptedPolicy, screenshot
from dart_gui.runner.play import write
from dart_gui.types import (
    Action,
    Completion,
    Hotkey,
    Observation,
    PlannedEpisode,
    SamplingParams,
    StopReason,
    Task,
    TypeText,
)

CLICK = "Thought: Click OK.\nAction: click(start_box='<|box_start|>(57,103)<|box_end|>')"
CONTROLS = "".join(map(chr, [*range(32), 127, *range(128, 160)])) + "\u2028\ufeff\U0001f600"
LIMITS = EpisodeLimits(
    max_steps=4, max_parse_errors=3, timeout_s=120.0, temperature=1.0, max_tokens=10_000
)


@pytest.fixture(params=["identity", "ruler"])
def agent(request: pytest.FixtureRequest, tmp_path: Path) -> Agent:
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / "dart_agent.json").write_text(json.dumps({"transform": request.param}))
    return Agent(tmp_path, AgentConfig())


async def play(
    agent: Agent, env: ScriptedEnv, *replies: str | Exception, task: Task | None = None
) -> Episode:
    return await run_episode(
        task or Task(task_id="s/a", seed=1),
        env=env,
        policy=ScriptedPolicy(replies=list(replies)),
        agent=agent,
        limits=LIMITS,
        seed=5,
        clock=ManualClock(),
        trajectory_id="t",
    )


# --- screenshots -------------------------------------------------------------------------------


class OtherScreens(ScriptedEnv):
    """Shows what it is given from the ``at``-th screen on."""

    def __init__(self, png: bytes, *, at: int = 0) -> None:
        super().__init__(terminate_after=3)
        self.png, self.at = png, at

    def _observe(self) -> Observation:
        seen = super()._observe()
        if len(self.actions) < self.at:
            return seen
        return Observation(screenshot=self.png, width=160, height=210, instruction=seen.instruction)


def picture(width: int, height: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "white").save(buffer, kind)
    return buffer.getvalue()


WHOLE = screenshot(0)


@pytest.mark.parametrize(
    "png",
    [
        *(WHOLE[:length] for length in (0, 7, 8, 20, 33, len(WHOLE) // 2)),
        *(WHOLE[:-cut] for cut in (1, 4, 8, 12, 13)),
        WHOLE[:40] + b"\x00" + WHOLE[41:],
        b"not an image",
        picture(160, 210, "JPEG"),
    ],
)
async def test_a_truncated_image_is_a_failure_of_the_environment(agent: Agent, png: bytes) -> None:
    for at in (0, 1):
        episode = await play(agent, OtherScreens(png, at=at), CLICK)
        assert episode.stop_reason is StopReason.ENV_ERROR
        assert f"a screenshot of {len(png)} bytes that is not a whole PNG" in episode.message
        assert len(episode.steps) == 0, "a step that led nowhere is no step"


async def test_a_screenshot_of_another_size_than_it_says(agent: Agent) -> None:
    episode = await play(agent, OtherScreens(picture(320, 210), at=1), CLICK)
    assert episode.stop_reason is StopReason.ENV_ERROR
    assert "320x210 pixels, and says that it has 160x210" in episode.message


class Resized(ScriptedEnv):
    """A desktop whose resolution changes within the episode."""

    def _observe(self) -> Observation:
        width, height = [(160, 210), (1920, 1080), (1, 300)][len(self.actions) % 3]
        return Observation(
            screenshot=picture(width, height), width=width, height=height, instruction="Go."
        )


async def test_a_screen_that_changes_its_size_is_read_at_the_new_one(agent: Agent) -> None:
    """The same words mean another point; where no point can be read the agent is told."""
    episode = await play(agent, Resized(), CLICK)
    assert episode.stop_reason is StopReason.MAX_STEPS
    clicks = [step.actions[0] for step in episode.steps if step.actions]
    # Resized to 168 x 224 and to 1316 x 728 by the model's limits: x = 57 / 168 * 160, and so on.
    points = {(round(click.point.x, 1), round(click.point.y, 1)) for click in clicks}  # type: ignore[union-attr]
    assert points == {(54.3, 96.6), (83.2, 152.8)}
    assert any("at most 200 times" in (step.parse_error or "") for step in episode.steps)


# --- replies -----------------------------------------------------------------------------------


def long_completion(text: str, num_tokens: int) -> Completion:
    return Completion(
        text=text,
        prompt_ids=[1, 2, 3],
        response_ids=[7] * num_tokens,
        rollout_logprobs=[-0.5] * num_tokens,
        entropies=[0.5] * num_tokens,
        image_hashes=[],
        finish_reason="length",
        policy_version=0,
        worker_id="w",
        sampling=SamplingParams(temperature=1.0, max_tokens=num_tokens, seed=1),
    )


class TalkativePolicy(ScriptedPolicy):
    """Says 10,000 tokens, and then has no more room."""

    async def complete(self, messages, images, sampling, *, trajectory_id):  # type: ignore[no-untyped-def]
        short = await super().complete(messages, images, sampling, trajectory_id=trajectory_id)
        long = long_completion(short.text, 10_000)
        object.__setattr__(long, "image_hashes", short.image_hashes)
        return long


def open_manager(folder: Path) -> DataManager:
    return DataManager(
        f"sqlite:///{folder}/ledger.sqlite",
        str(folder / "blobs"),
        run_id="r",
        config=DataConfig(),
        curation=CurationConfig(),
        groups_per_step=1,
        sampler=RoundRobinSampler(["s/a"], seed=1, train_seed=lambda rng: 1),
    )


def stored_and_read_back(folder: Path, planned: PlannedEpisode, episode: Episode) -> None:
    with open_manager(folder) as manager:
        trajectory = episode.trajectory(planned, run_id="r")
        manager.store(trajectory, episode.images)
        assert manager.load_trajectory(trajectory.trajectory_id) == trajectory


def planned_in(folder: Path) -> PlannedEpisode:
    with open_manager(folder) as manager:
        manager.publish_version(0, "/w/0")
        planned = manager.next_episode(0)
    assert planned is not None
    return planned


@pytest.mark.parametrize(
    "reply",
    [
        "Thought: " + "hm, " * 10_000,
        "Thought: go\nAction: type(content='" + "a'b\\" * 10_000 + "')",
        "Action: " + "wait()\n" * 2_500,
        "Action: click(start_box='(" + "9" * 20_000 + ",1)')",
        "<|image_pad|>" * 10_000,
    ],
    ids=["thought", "text", "actions", "number", "image-pads"],
)
async def test_a_reply_of_ten_thousand_tokens(agent: Agent, tmp_path: Path, reply: str) -> None:
    planned = planned_in(tmp_path)
    full = ContextLengthError("the prompt does not fit")
    started = time.process_time()
    episode = await run_episode(
        planned.task,
        env=ScriptedEnv(),
        policy=TalkativePolicy(replies=[reply, full]),
        agent=agent,
        limits=LIMITS,
        seed=planned.seed,
        clock=ManualClock(),
        trajectory_id=planned.episode_id,
    )
    assert time.process_time() - started < 20.0  # 2,500 screenshots take about a second
    assert episode.stop_reason is StopReason.MAX_TOKENS
    assert len(episode.steps[0].completion.response_ids) == 10_000
    stored_and_read_back(tmp_path, planned, episode)


@pytest.mark.parametrize(
    "reply",
    [
        CONTROLS,
        f"Thought: {CONTROLS}\nAction: type(content='{CONTROLS}')",
        f"Thought: x\nAction: press(key='{CONTROLS}')",
        f"Action: {CONTROLS}",
        "\x00" * 1000,
        "\x1b[2J\x1b]0;title\x07Action: wait()",
    ],
)
async def test_a_reply_of_control_characters(agent: Agent, tmp_path: Path, reply: str) -> None:
    planned = planned_in(tmp_path)
    episode = await play(agent, ScriptedEnv(reward=0.5), reply, task=planned.task)
    assert episode.stop_reason in (StopReason.MAX_STEPS, StopReason.PARSE_ERROR)
    for step in episode.steps:
        assert bool(step.actions) != bool(step.parse_error)
        assert (step.parse_error or "").isprintable()
    stored_and_read_back(tmp_path, planned, episode)
    observations = [
        Observation(screenshot=WHOLE, width=160, height=210, instruction="Go.")
        for _ in range(1 + sum(len(step.actions) for step in episode.steps))
    ]
    played = write(episode, observations, tmp_path / "out")
    for shown in played.steps:
        for line in (shown.thought, *shown.actions, shown.problem or ""):
            assert line.isprintable(), "a terminal would obey it"


@pytest.mark.parametrize("action", [TypeText(text=CONTROLS), Hotkey(keys=("\x1b[2J", "a"))])
def test_actions_are_shown_without_control_characters(action: Action) -> None:
    assert describe(action).isprintable()


def test_halves_of_characters_are_mended_where_they_come_in() -> None:
    """JSON can carry them; neither a file nor a later prompt can."""
    body = {
        "choices": [
            {
                "message": {"content": "a\ud83d\ude00b\ud800c\udc00"},
                "token_ids": [1],
                "logprobs": {"content": [{"logprob": -1.0}]},
                "finish_reason": "stop",
            }
        ],
        "prompt_token_ids": [1],
        "entropies": [0.0],
        "image_hashes": [],
        "policy_version": 0,
        "worker_id": "w",
        "sampling": {"temperature": 1.0, "max_tokens": 4, "seed": 1},
        "masked_token_ids": [],
    }
    assert parse_completion(body).text == "a\U0001f600b\ufffdc\ufffd"
