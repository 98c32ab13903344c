import pytest

from dart_gui.agent.geometry import Geometry, ImageLimits
from dart_gui.agent.grammar import parse
from dart_gui.errors import PolicyError
from dart_gui.runner.fakes import screenshot
from dart_gui.runner.random_policy import RandomPolicy, png_size
from dart_gui.types import Click, SamplingParams

LIMITS = ImageLimits(56 * 56, 28 * 28 * 1280)
PROMPT = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "sha256:aa"}}]},
]


async def click(seed: int) -> Click:
    sampling = SamplingParams(temperature=1.0, max_tokens=64, seed=seed)
    completion = await RandomPolicy(LIMITS).complete(
        PROMPT, {"aa": screenshot(0)}, sampling, trajectory_id="t"
    )
    assert completion.image_hashes == ["aa"]
    assert completion.sampling == sampling
    reply = parse(completion.text, Geometry(160, 210, LIMITS))
    (action,) = reply.actions
    assert isinstance(action, Click)
    assert (action.button, action.count) == ("left", 1)
    return action


async def test_clicks_everywhere_below_the_instruction_bar():
    points = [(await click(seed)).point for seed in range(400)]
    # The grammar rounds to pixels of the model's image, about one pixel of the screen.
    assert all(0 <= point.x < 160 and 49 <= point.y < 210 for point in points)
    assert min(point.x for point in points) < 8
    assert max(point.x for point in points) > 152
    assert min(point.y for point in points) < 58
    assert max(point.y for point in points) > 202
    mean_x, mean_y = (sum(getattr(p, axis) for p in points) / 400 for axis in "xy")
    assert mean_x == pytest.approx(80, abs=8)
    assert mean_y == pytest.approx(130, abs=8)


async def test_is_a_function_of_the_seed():
    assert await click(3) == await click(3)
    assert await click(3) != await click(4)


async def test_refuses_a_prompt_without_a_screenshot():
    sampling = SamplingParams(temperature=1.0, max_tokens=64, seed=0)
    with pytest.raises(PolicyError, match="no screenshot"):
        await RandomPolicy(LIMITS).complete([], {}, sampling, trajectory_id="t")


def test_png_size():
    assert png_size(screenshot(0)) == (160, 210)
    with pytest.raises(ValueError, match="PNG"):
        png_size(b"GIF89a")
