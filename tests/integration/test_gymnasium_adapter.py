"""Tasks as Gymnasium environments, in a real Chromium."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dart_gui.env import gymnasium_adapter
from dart_gui.env.gymnasium_adapter import KINDS, GuiEnv, to_action
from dart_gui.env.suites import EVAL_SEEDS, get_suite
from dart_gui.errors import ConfigError, SetupError
from dart_gui.types import Click, Drag, Finished, Hotkey, Point, Press, Scroll, TypeText, Wait

ROOT = Path(__file__).resolve().parents[2]
SHOP = f"{ROOT / 'examples' / 'own_suite' / 'shop.py'}:SUITE"


def act(kind: str, x: int = 0, y: int = 0, text: str = "") -> dict[str, object]:
    zero = np.zeros(2, np.int64)
    point = np.array([x, y], np.int64)
    return {"kind": KINDS.index(kind), "point": point, "end": zero, "text": text}


def test_every_task_of_miniwob_is_registered() -> None:
    for task in get_suite("miniwob").task_ids:
        assert f"dart_gui/{task.replace('/', '-')}-v0" in gymnasium.registry


@pytest.mark.browser
def test_gymnasium_finds_no_fault() -> None:
    env = gymnasium.make("dart_gui/miniwob-click-test-2-v0", render_mode="rgb_array")
    try:
        check_env(env.unwrapped)
        seen, info = env.reset(options={"seed": 5})
        assert info == {"seed": 5}
        assert env.render().shape == seen["screenshot"].shape == (210, 160, 3)
        assert seen["instruction"] == "Click button ONE."
    finally:
        env.close()


@pytest.mark.browser
def test_an_episode_of_ones_own_suite() -> None:
    env = gymnasium.make("dart_gui/task-v0", task="shop/order", suite=SHOP, max_steps=3)
    try:
        seen, info = env.reset(seed=1)
        first = env.reset(seed=1)
        assert (first[1], first[0]["instruction"]) == (info, seen["instruction"])
        assert np.array_equal(first[0]["screenshot"], seen["screenshot"])

        shown, reward, terminated, truncated, info = env.step(act("click", 80, 400))
        assert (reward, terminated, truncated) == (0.0, False, False)
        assert "outside the 160 x 210 screen" in info["action_error"]
        assert np.array_equal(shown["screenshot"], seen["screenshot"])

        _, _, terminated, truncated, info = env.step(act("wait"))
        assert (terminated, truncated, info["action_error"]) == (False, False, None)
        _, reward, terminated, truncated, info = env.step(act("wait"))
        assert (reward, terminated, truncated, info["success"]) == (0.0, False, True, False)
        with pytest.raises(RuntimeError, match="after the end of the episode"):
            env.unwrapped.step(act("wait"))

        env.reset(options={"seed": 0})  # asks for an apple
        solve_order(env.unwrapped)
        env.reset()
        _, reward, terminated, _, info = env.step(act("finished"))
        assert (reward, terminated, info["success"]) == (0.0, True, False)
    finally:
        env.close()
        env.close()


def solve_order(env: GuiEnv) -> None:
    """The apple is on one of three places: the page is the same for each try, so try them."""
    rewards = []
    for y in (63, 96, 129):
        env.reset(options={"seed": 0})
        env.step(Click(point=Point(80, y)))
        _, reward, terminated, truncated, info = env.step(act("click", 80, 180))
        assert (terminated, truncated) == (True, False)
        assert info["success"] == (reward == 1)
        rewards.append(reward)
    assert sorted(rewards) == [0.0, 0.0, 1.0]


@pytest.mark.browser
def test_instances_are_drawn_from_the_range_that_was_asked_for() -> None:
    env = GuiEnv("shop/pick-color", SHOP, seeds="eval", settings={"action_ms": 10})
    try:
        assert env.reset(seed=3)[1]["seed"] in EVAL_SEEDS
    finally:
        env.close()
    with pytest.raises(RuntimeError, match="after close"):
        env.step(act("wait"))


def test_what_cannot_be_made_says_why() -> None:
    with pytest.raises(ConfigError, match="did you mean miniwob/click-test"):
        GuiEnv("miniwob/click-tset")
    with pytest.raises(SetupError, match="not an executable file"):
        GuiEnv("miniwob/click-test", settings={"browser": "/no/such"})


@pytest.mark.browser
def test_close_leaves_no_browser_behind() -> None:
    code = (
        "import gymnasium, os, dart_gui.env.gymnasium_adapter\n"
        "env = gymnasium.make('dart_gui/miniwob-click-test-v0')\n"
        "env.reset()\n"
        "pid = env.unwrapped._env.slot.browser_pid\n"
        "os.kill(pid, 0)\n"
        "env.close()\n"
        "import time\n"
        "end = time.monotonic() + 30\n"
        "while os.path.exists(f'/proc/{pid}') and time.monotonic() < end:\n"
        "    time.sleep(0.05)\n"
        "print('running' if os.path.exists(f'/proc/{pid}') else 'gone')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.stdout.strip() == "gone", ran.stderr


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (act("click", 3, 4), Click(point=Point(3, 4))),
        (act("double_click", 3, 4), Click(point=Point(3, 4), count=2)),
        (act("right_click", 3, 4), Click(point=Point(3, 4), button="right")),
        (act("drag", 3, 4), Drag(start=Point(3, 4), end=Point(0, 0))),
        (act("scroll_left", 3, 4), Scroll(direction="left", point=Point(3, 4))),
        (act("type", text="a b"), TypeText(text="a b")),
        (act("press", text="enter"), Press(key="enter")),
        (act("hotkey", text="ctrl c"), Hotkey(keys=("ctrl", "c"))),
        (act("wait"), Wait()),
        (act("finished", text="yes"), Finished(text="yes")),
    ],
)
def test_an_element_of_the_action_space_is_a_typed_action(
    action: dict[str, object], expected: object
) -> None:
    assert to_action(action) == expected


def test_every_kind_means_another_action() -> None:
    meant = {repr(to_action(act(kind, 3, 4, "a"))) for kind in KINDS}
    assert len(meant) == len(KINDS)
    assert gymnasium_adapter.KINDS[0] == "click"
