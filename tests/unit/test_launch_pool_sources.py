"""Trajectory folders in the published format, as they are on disk."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from dart_gui.agent.agent import Agent
from dart_gui.agent.fingerprint import renderer_fingerprint
from dart_gui.config import AgentConfig
from dart_gui.errors import ConfigError, DataError
from dart_gui.launch.pool_sources import published, published_folders
from dart_gui.model.policy_model import PromptRenderer
from dart_gui.train.foreign import foreign_trajectory
from dart_gui.types import Click, Finished

TINY_AGENT = Path(__file__).resolve().parents[2] / "models" / "tiny-agent"
NAME = "b21acd93-60fd_trace-0123456789ab-1758000000"
CLICK = "Thought: The button.\nAction: click(start_box='<|box_start|>(20,30)<|box_end|>')"
DONE = "Thought: Submit.\nAction: finished(content='')"


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (160, 210), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(root: Path, *, reward: str = "1.0", padded: bool = True, task_file: bool = True) -> Path:
    folder = root / NAME
    folder.mkdir(parents=True)
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "You are a GUI agent.\n## User Instruction\nPress it.\n"},
                {"type": "image_url", "image_url": "image_0000.png"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": CLICK}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": "image_0001.png"}]},
        {"role": "assistant", "content": [{"type": "text", "text": DONE}]},
    ]
    (folder / "final_messages.json").write_text(json.dumps(messages))
    (folder / "reward.txt").write_text(reward)
    if task_file:
        (folder / "task_config.json").write_text(json.dumps({"instruction": "Press the button."}))
    for index in range(2):
        name = f"image_{index:04d}.png" if padded else f"image_{index}.png"
        (folder / name).write_bytes(png(index))
    return folder


@pytest.fixture(scope="module")
def agent():
    return Agent(TINY_AGENT, AgentConfig(max_images=1))


def test_a_success_becomes_what_our_agent_would_have_seen(agent, tmp_path):
    folder = write(tmp_path)
    assert published_folders(tmp_path) == [folder]
    episode = published(folder, agent)
    assert (episode.task.task_id, episode.reward) == ("b21acd93-60fd", 1.0)
    assert episode.instruction == "Press the button."
    assert [step.reply for step in episode.steps] == [CLICK, DONE]
    assert isinstance(episode.steps[0].actions[0], Click)
    assert isinstance(episode.steps[1].actions[0], Finished)
    # Our history window: one screenshot, the newest; the earlier reply stays.
    second = episode.steps[1].messages
    images = [
        p
        for m in second
        if isinstance(m["content"], list)
        for p in m["content"]
        if p["type"] == "image_url"
    ]
    assert len(images) == 1
    assert [m["content"] for m in second if m["role"] == "assistant"] == [CLICK]


def test_it_is_tokenised_by_our_renderer_and_has_no_behaviour(agent, tmp_path):
    renderer = PromptRenderer(TINY_AGENT)
    trajectory = foreign_trajectory(renderer, published(write(tmp_path), agent), NAME)
    for step in trajectory.steps:
        completion = step.completion
        assert completion.foreign
        assert completion.rollout_logprobs == completion.entropies == []
        assert completion.response_ids[-1] in renderer.eos_ids
        assert renderer.decode(completion.response_ids) == completion.text
        assert completion.prompt_ids.count(renderer.image_token_id) > 1  # expanded
    assert trajectory.success


def test_a_reply_that_could_never_be_sampled_is_refused(agent, tmp_path):
    episode = published(write(tmp_path), agent)
    steps = [dataclasses.replace(step, reply="<|image_pad|>") for step in episode.steps]
    with pytest.raises(DataError, match="may not sample"):
        foreign_trajectory(
            PromptRenderer(TINY_AGENT), dataclasses.replace(episode, steps=steps), NAME
        )


def test_the_model_services_copy_without_task_file_and_with_short_names(agent, tmp_path):
    episode = published(write(tmp_path, padded=False, task_file=False), agent)
    assert episode.instruction == "Press it."
    assert len(episode.images) == 2


@pytest.mark.parametrize("reward", ["0.0", "0.5", "-1", "-2"])
def test_what_is_no_success_is_left_out(agent, tmp_path, reward):
    assert published(write(tmp_path, reward=reward), agent) is None


def test_a_damaged_folder_says_what_is_wrong(agent, tmp_path):
    with pytest.raises(ConfigError, match="published format"):
        published_folders(tmp_path)
    folder = write(tmp_path)
    (folder / "image_0001.png").unlink()
    with pytest.raises(DataError, match=r"neither image_0001\.png nor image_1\.png"):
        published(folder, agent)
    (folder / "reward.txt").write_text("good")
    with pytest.raises(DataError, match=r"reward\.txt"):
        published(folder, agent)


def test_the_fingerprint_follows_what_changes_the_tokens(tmp_path):
    ours = renderer_fingerprint(TINY_AGENT, AgentConfig())
    assert ours == renderer_fingerprint(TINY_AGENT, AgentConfig())
    assert ours != renderer_fingerprint(TINY_AGENT, AgentConfig(max_images=1))
    for file in TINY_AGENT.iterdir():
        if file.suffix in (".json", ".jinja"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert ours == renderer_fingerprint(tmp_path, AgentConfig())  # the weights do not matter
    (tmp_path / "dart_agent.json").write_text('{"transform": "identity"}')
    assert ours != renderer_fingerprint(tmp_path, AgentConfig())
