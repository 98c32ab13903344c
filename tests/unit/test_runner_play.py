import io

import pytest
from PIL import Image

from dart_gui.agent.agent import Agent
from dart_gui.config import AgentConfig
from dart_gui.errors import EnvError, PolicyError
from dart_gui.runner import drawing
from dart_gui.runner.episode import EpisodeLimits
from dart_gui.runner.fakes import (
    ManualClock,
    ScriptedCluster,
    ScriptedEnv,
    ScriptedPolicy,
    screenshot,
)
from dart_gui.runner.play import play, thought_of
from dart_gui.types import (
    CallUser,
    Click,
    Drag,
    Finished,
    Hotkey,
    Hover,
    KeyDown,
    KeyUp,
    Observation,
    Point,
    Press,
    Scroll,
    Task,
    TypeText,
    Wait,
)

REPLIES = [
    "Thought: Focus,\nthen type.\nAction: click(start_box='(84,112)')\n\ntype(content='ann')",
    "what?",
    "Thought: Done.\nAction: finished()",
]
LIMITS = EpisodeLimits(
    max_steps=5, max_parse_errors=1, timeout_s=60.0, temperature=1.0, max_tokens=64
)
MARK = (220, 0, 60)


@pytest.fixture
def agent(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{}")
    return Agent(tmp_path, AgentConfig())


async def played(agent, out_dir, env, replies):
    return await play(
        Task(task_id="miniwob/enter-text", seed=3),
        out_dir,
        cluster=ScriptedCluster(lambda: env, num_envs=1),
        policy=ScriptedPolicy(replies=replies),
        agent=agent,
        limits=LIMITS,
        seed=0,
        clock=ManualClock(),
    )


async def test_writes_a_picture_for_each_step(agent, tmp_path):
    result = await played(agent, tmp_path / "out", ScriptedEnv(reward=1.0), list(REPLIES))
    names = [path.name for path in result.paths]
    assert names == [
        "step_00.png",
        "step_01.png",
        "step_02.png",
        "final.png",
        "episode.png",
        "episode.md",
    ]
    frames = [Image.open(path) for path in result.paths[:4]]
    assert {frame.size for frame in frames} == {(480, 630)}
    # The colour of a fake screenshot is the number of actions before it: 0, 2, 2, 2.
    assert [frame.getpixel((470, 300))[0] for frame in frames] == [0, 2, 2, 2]
    assert result.steps[0].thought == "Focus, then type."
    assert result.steps[0].actions == ["click (80, 105)", "type 'ann'"]
    assert "expected" in result.steps[1].problem
    assert result.steps[2].actions == ["finished"]
    report = result.report.read_text()
    assert "reward 1.00 (success)" in report
    assert "![](step_01.png)" in report


@pytest.mark.parametrize(
    ("env", "replies", "kind"),
    [
        (ScriptedEnv(breaks_at="step"), REPLIES[:1], EnvError),
        (ScriptedEnv(), [PolicyError("503")], PolicyError),
    ],
)
async def test_a_failure_is_raised_and_writes_nothing(agent, tmp_path, env, replies, kind):
    with pytest.raises(kind, match="miniwob/enter-text"):
        await played(agent, tmp_path / "out", env, replies)
    assert not (tmp_path / "out").exists()


def observation() -> Observation:
    return Observation(screenshot=screenshot(9), width=160, height=210, instruction="Go.")


def test_a_click_is_marked_where_it_goes():
    frame = drawing.annotate(observation(), [Click(point=Point(50, 100))])
    assert frame.getpixel((151, 301)) == MARK  # the middle of the enlarged pixel
    assert frame.getpixel((400, 100)) == (9, 128, 64)


def test_a_drag_is_a_line():
    frame = drawing.annotate(observation(), [Drag(start=Point(10, 100), end=Point(110, 100))])
    assert frame.getpixel((181, 301)) == MARK


def test_a_large_screen_is_not_enlarged():
    buffer = io.BytesIO()
    Image.new("RGB", (1920, 1080)).save(buffer, "PNG")
    large = Observation(screenshot=buffer.getvalue(), width=1920, height=1080, instruction="Go.")
    assert drawing.annotate(large, []).size == (1920, 1080)


@pytest.mark.parametrize(
    ("action", "text"),
    [
        (Click(point=Point(1.5, 2)), "click (1.5, 2)"),
        (Click(point=Point(1, 2), count=2), "double click (1, 2)"),
        (Click(point=Point(1, 2), button="right"), "right click (1, 2)"),
        (Hover(point=Point(1, 2)), "hover (1, 2)"),
        (Drag(start=Point(1, 2), end=Point(3, 4)), "drag (1, 2) -> (3, 4)"),
        (Scroll(direction="up"), "scroll up"),
        (Scroll(direction="down", point=Point(1, 2)), "scroll down (1, 2)"),
        (Hotkey(keys=("ctrl", "c")), "hotkey ctrl+c"),
        (Press(key="enter"), "press enter"),
        (KeyDown(key="shift"), "keydown shift"),
        (KeyUp(key="shift"), "keyup shift"),
        (TypeText(text="a\n'b'"), "type \"a\\n'b'\""),
        (Wait(), "wait"),
        (Finished(), "finished"),
        (Finished(text="ok"), "finished 'ok'"),
        (CallUser(), "call_user"),
    ],
)
def test_every_action_has_a_line_and_can_be_drawn(action, text):
    assert drawing.describe(action) == text
    drawing.annotate(observation(), [action, action], note="no action\nat all " * 40)


def test_thought_of():
    assert thought_of("Thought: a\n b\nAction: wait()") == "a b"
    assert thought_of("no structure") == "no structure"
