"""What the benchmark of the prefix cache computes with: recorded episodes, their prompts, figures."""

import dataclasses
import io

import pytest
from PIL import Image

from benchmarks.prefix.episodes import RecordedEpisode, RecordedStep, load, prompts, save
from benchmarks.prefix.figures import ARMS, Asked, draw, replay_of
from benchmarks.prefix.replay import turns
from dart_gui.agent.agent import Agent
from dart_gui.agent.geometry import ImageLimits
from dart_gui.config import AgentConfig

LIMITS = ImageLimits(factor=28, min_pixels=3136, max_pixels=200704)


def png(shade):
    buffer = io.BytesIO()
    Image.new("RGB", (160, 210), (shade, 0, 0)).save(buffer, "png")
    return buffer.getvalue()


def episode(num_steps):
    return RecordedEpisode(
        task_id="miniwob/click-test",
        seed=1,
        repeat=0,
        instruction="Click.",
        width=160,
        height=210,
        steps=tuple(
            RecordedStep(screenshot=png(n), reply=f"Action: wait() {n}", num_tokens=5)
            for n in range(num_steps)
        ),
    )


def test_episodes_come_back_as_they_were_saved_and_the_same_bytes_each_time(tmp_path):
    episodes = [episode(3), dataclasses.replace(episode(2), repeat=1)]
    save(tmp_path / "a.zip", episodes)
    save(tmp_path / "b.zip", episodes)
    assert load(tmp_path / "a.zip") == episodes
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_recorded_episodes_are_whole_and_long():
    episodes = load()
    assert len({each.name for each in episodes}) == len(episodes) >= 16
    assert min(len(each.steps) for each in episodes) > 5, "longer than a prompt has screenshots"
    assert all(step.reply and step.num_tokens for each in episodes for step in each.steps)


@pytest.mark.parametrize(
    ("trim", "num_images"),
    [("slide", [1, 2, 3, 4, 4, 4, 4, 4]), ("block", [1, 2, 3, 4, 2, 3, 4, 2])],
)
def test_prompts_follow_the_rule_of_the_history(trim, num_images):
    agent = Agent(LIMITS, AgentConfig(max_images=4, trim=trim))
    found = list(prompts(episode(8), agent))
    assert [len(prompt.images) for prompt in found] == num_images
    replies = [m["content"] for m in found[-1].messages if m["role"] == "assistant"]
    assert replies == [f"Action: wait() {n}" for n in range(7)]


def test_a_replay_is_judged_by_the_servers_own_count():
    asked = [Asked(num_prompt_tokens=100, seconds=float(n)) for n in range(1, 21)]
    found = replay_of(asked, seconds=10.0, num_looked_up=2000, num_found=500)
    assert (found.hit_rate, found.requests_per_s, found.prompt_tokens_per_s) == (0.25, 2.0, 200.0)
    assert found.computed_per_request == 75.0
    assert (found.latency_p50_s, found.latency_p95_s) == (10.5, pytest.approx(19.05))
    with pytest.raises(ValueError, match="looked up 2100 tokens of prompts that have 2000"):
        replay_of(asked, seconds=10.0, num_looked_up=2100, num_found=500)


def test_each_round_has_every_arm_and_another_one_first():
    order = list(turns(ARMS, 5))
    rounds = [[arm for number, arm in order if number == n] for n in range(5)]
    assert all(set(each) == set(ARMS) for each in rounds)
    assert [each[0] for each in rounds] == [*ARMS, ARMS[0]]


def test_the_plot_is_a_picture(tmp_path):
    asked = [Asked(num_prompt_tokens=100, seconds=1.0)] * 2
    replay = replay_of(asked, seconds=1.0, num_looked_up=200, num_found=50)
    draw({arm: [replay] for arm in ARMS}, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size[0] > 300
