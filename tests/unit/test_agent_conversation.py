import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dart_gui.agent.agent import Agent, Conversation
from dart_gui.agent.geometry import Geometry
from dart_gui.agent.grammar import ParsedReply
from dart_gui.agent.prompts import SYSTEM_PROMPT, disarm_control_tokens, user_prompt
from dart_gui.agent.transforms import identity, load_transform, ruler
from dart_gui.config import AgentConfig
from dart_gui.errors import ConfigError, SetupError
from dart_gui.types import Click, Observation, Point, Wait


def png(width: int = 280, height: int = 140, color: tuple[int, int, int] = (250, 100, 50)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), color).save(out, format="PNG")
    return out.getvalue()


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.array(image.convert("RGB"))


def observation(shade: int, instruction: str = "Click OK.") -> Observation:
    return Observation(
        screenshot=png(color=(shade, shade, shade)),
        width=280,
        height=140,
        instruction=instruction,
    )


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    tree = {"size": {"shortest_edge": 784, "longest_edge": 100_000}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(tree))
    return tmp_path


def start(model_dir: Path, **settings: Any) -> Conversation:
    return Agent(model_dir, AgentConfig(**settings)).start(observation(0))


# --- prompts -------------------------------------------------------------------------------


def test_the_prompt_has_the_structure_of_ui_tars() -> None:
    text = user_prompt("Click the button.", "English")
    lines = text.split("\n")
    headings = [line for line in lines if line.startswith("## ")]
    assert headings == [
        "## Output Format",
        "## Action Space",
        "## Note",
        "## User Instruction",
    ]
    assert lines[-2:] == ["## User Instruction", "Click the button."]
    fence = lines.index("```")
    assert lines[fence : fence + 4] == ["```", "Thought: ...", "Action: ...", "```"]
    assert "click(start_box='<|box_start|>(x1,y1)<|box_end|>')" in lines
    assert any("English" in line for line in lines)
    assert SYSTEM_PROMPT == "You are a helpful assistant."


def test_only_the_last_line_depends_on_the_instruction() -> None:
    first = user_prompt("One {thing}.", "English").rpartition("\n")
    second = user_prompt("A\nlong\r\n\nstory <|image_pad|>", "English").rpartition("\n")
    assert first[0] == second[0]
    assert first[2] == "One {thing}."
    assert second[2] == "A long story < |image_pad|>"


def test_box_tokens_stay_armed() -> None:
    text = "<|box_start|>(1,2)<|box_end|><|im_end|><|im_<|im_end|>end|>"
    disarmed = "<|box_start|>(1,2)<|box_end|>< |im_end|><|im_< |im_end|>end|>"
    assert disarm_control_tokens(text) == disarmed


# --- transforms ----------------------------------------------------------------------------


def test_the_ruler_darkens_red_to_the_right_and_green_downwards() -> None:
    before = png(101, 51, color=(200, 100, 50))
    after = pixels(ruler(before))
    assert after.shape == (51, 101, 3)
    assert after[0, 0].tolist() == [200, 100, 50]
    assert after[0, 100].tolist() == [160, 100, 50]  # 200 * 0.8
    assert after[50, 0].tolist() == [200, 80, 50]  # 100 * 0.8
    assert after[25, 50].tolist() == [180, 90, 50]
    assert ruler(before) == ruler(before)


def test_the_ruler_survives_one_pixel_and_transparency() -> None:
    assert pixels(ruler(png(1, 1, color=(9, 8, 7)))).tolist() == [[[9, 8, 7]]]
    out = io.BytesIO()
    Image.new("RGBA", (2, 1), (100, 100, 100, 0)).save(out, format="PNG")
    assert pixels(ruler(out.getvalue()))[0].tolist() == [[100, 100, 100], [80, 100, 100]]


def test_the_model_folder_names_the_transform(tmp_path: Path) -> None:
    assert load_transform(tmp_path) is identity
    settings = tmp_path / "dart_agent.json"
    settings.write_text("{}")
    assert load_transform(tmp_path) is identity
    settings.write_text('{"transform": "ruler"}')
    assert load_transform(tmp_path) is ruler


@pytest.mark.parametrize("text", ['{"transform": "rulr"}', '{"transform": 3}', "[]", "{", "\xff"])
def test_an_unknown_transform_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dart_agent.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"dart_agent\.json"):
        load_transform(tmp_path)


# --- conversations -------------------------------------------------------------------------


def test_start_has_seen_the_first_observation(model_dir: Path) -> None:
    prompt = start(model_dir).prompt()
    name = hashlib.sha256(observation(0).screenshot).hexdigest()
    assert prompt.images == {name: observation(0).screenshot}
    text, image = prompt.messages[1]["content"]
    assert text["text"] == user_prompt("Click OK.", "English")
    assert image["image_url"]["url"] == f"sha256:{name}"


def test_a_reply_is_parsed_in_screen_pixels_and_remembered(model_dir: Path) -> None:
    conversation = start(model_dir)
    reply = "Thought: OK.\nAction: click(start_box='<|box_start|>(28,56)<|box_end|>')<|im_end|>"
    parsed = conversation.hear(reply)
    assert parsed.actions == (Click(point=Point(28.0, 56.0)),)
    conversation.see(observation(1))
    messages = conversation.prompt().messages
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"] == reply.removesuffix("<|im_end|>")
    assert [part["type"] for part in messages[3]["content"]] == ["image_url"]


def test_the_agent_sees_that_its_reply_could_not_be_parsed_once(model_dir: Path) -> None:
    conversation = start(model_dir)
    assert conversation.hear("<|image_pad|>").error is not None
    conversation.see(observation(1))
    reply, last = conversation.prompt().messages[2:]
    assert reply["content"] == "< |image_pad|>"
    note, image = last["content"]
    assert note["text"].startswith("The last reply could not be parsed: expected `Thought: ...`")
    assert "<|image_pad|>" not in note["text"]
    assert image["type"] == "image_url"
    assert conversation.hear("Action: wait()").actions == (Wait(),)
    conversation.see(observation(2))
    assert len(conversation.prompt().messages[-1]["content"]) == 1


def test_a_prompt_brings_the_images_that_it_names(model_dir: Path) -> None:
    conversation = start(model_dir, max_images=2)
    for shade in (1, 2, 3):
        conversation.hear("Action: wait()")
        conversation.see(observation(shade))
    names = [hashlib.sha256(observation(shade).screenshot).hexdigest() for shade in range(4)]
    assert list(conversation.prompt().images) == names[2:]
    assert list(conversation.images) == names


def test_equal_screenshots_are_one_image_named_twice(model_dir: Path) -> None:
    conversation = start(model_dir)
    conversation.hear("Action: wait()")
    conversation.see(observation(0))
    prompt = conversation.prompt()
    assert len(prompt.images) == 1
    assert str(prompt.messages).count(next(iter(prompt.images))) == 2


def test_what_is_sent_is_what_the_transform_made(model_dir: Path) -> None:
    (model_dir / "dart_agent.json").write_text('{"transform": "ruler"}')
    images = start(model_dir).prompt().images
    (sent,) = images.values()
    assert sent == ruler(observation(0).screenshot)
    assert set(images) == {hashlib.sha256(sent).hexdigest()}


def test_seeing_and_hearing_take_turns(model_dir: Path) -> None:
    conversation = start(model_dir)
    conversation.hear("Action: wait()")
    with pytest.raises(ValueError, match="not answered yet"):
        conversation.hear("Action: wait()")
    with pytest.raises(ValueError, match="all have a reply but the newest"):
        conversation.prompt()


def test_an_agent_needs_a_model_folder(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="not a model folder"):
        Agent(tmp_path / "nothing", AgentConfig())


class TerseAgent(Agent):
    """Another grammar: a reply is ``x y``, in pixels of the image that the model saw."""

    def first_prompt(self, instruction: str) -> str:
        return f"Where to click? {instruction}"

    def parse(self, reply: str, geometry: Geometry) -> ParsedReply:
        words = reply.split()
        if len(words) != 2 or not all(word.isdecimal() for word in words):
            return ParsedReply("", (), f"expected `x y`, got {reply!r}")
        point = geometry.to_screen(float(words[0]), float(words[1]))
        return ParsedReply("", (Click(point=point),), None)


def test_an_agent_of_ones_own_has_its_own_words_and_grammar(model_dir: Path) -> None:
    conversation = TerseAgent(model_dir, AgentConfig()).start(observation(0))
    assert "Where to click?" in repr(conversation.prompt().messages)
    assert "Output Format" not in repr(conversation.prompt().messages)
    parsed = conversation.hear("84 98")
    assert isinstance(parsed.actions[0], Click)
    conversation.see(observation(1))
    assert conversation.hear("click there").error == "expected `x y`, got 'click there'"
