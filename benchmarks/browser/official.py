"""The child process with one official environment: ``python -m benchmarks.browser.official I TASK``.

``gymnasium.make("miniwob/TASK-v1")`` as its documentation has it: headless Chrome through
chromedriver, actions of the type CLICK_COORDS, the screenshot in each observation. Two things are
left out in its favour: Gymnasium's environment checker, and the sampling of a random action by
``create_action``. A step that ends the episode takes no screenshot there; ours does.
"""

from __future__ import annotations

import sys
import time
from typing import Any, cast

import gymnasium
import miniwob.environment
import numpy as np
from miniwob.action import ActionTypes
from miniwob.observation import create_observation
from miniwob.screenshot import get_screenshot, pil_to_numpy_array
from miniwob.selenium_instance import SeleniumInstance

from benchmarks.browser.workload import Order, Pipe, Tally, clicks, seeds_of


class SwitchableInstance(SeleniumInstance):
    """Takes observations with or without the DOM, which the package itself cannot leave out."""

    with_dom = True

    def get_observation(self, use_cached_fields: bool = False) -> tuple[Any, dict[str, Any]]:
        if self.with_dom:
            return super().get_observation(use_cached_fields)
        said = self.driver.execute_script("return core.getUtterance();")
        image = get_screenshot(
            self.driver,
            true_width=self.inner_width,
            true_height=self.inner_height,
            crop_width=self.task_width,
            crop_height=self.task_height,
        )
        observation = create_observation(
            said["utterance"] if isinstance(said, dict) else said,
            _NoDom(),
            pil_to_numpy_array(image),
            self.cached_fields,
        )
        return observation, {}


class _NoDom:
    subtree_elements: tuple[Any, ...] = ()


class Side:
    def __init__(self, index: int, task: str) -> None:
        miniwob.environment.SeleniumInstance = SwitchableInstance
        gymnasium.register_envs(miniwob)
        self._task = task
        self._seeds = seeds_of(index)
        self._env = gymnasium.make(f"miniwob/{task}-v1", disable_env_checker=True)
        self._inner = cast(Any, self._env.unwrapped)
        types = self._inner.action_space_config.action_types
        self._click = types.index(ActionTypes.CLICK_COORDS)

    def run(self, order: Order) -> Tally:
        self._inner.instance.with_dom = order.with_dom
        tally, started = Tally(), time.perf_counter()
        while time.perf_counter() - started < order.run_s:
            self._episode(next(self._seeds), started + order.run_s, tally)
        tally.wall_s = time.perf_counter() - started
        return tally

    def close(self) -> None:
        self._env.close()

    def _episode(self, seed: int, deadline: float, tally: Tally) -> None:
        self._env.reset(seed=seed)
        for x, y in clicks(self._task, seed):
            if time.perf_counter() >= deadline:
                return
            action = {"action_type": self._click, "coords": np.array([x, y], dtype=np.float32)}
            _, _, terminated, _, _ = self._env.step(action)
            tally.num_steps += 1
            if terminated:
                break
        tally.num_episodes += 1


def main(index: int, task: str) -> None:
    pipe = Pipe()
    side = Side(index, task)
    try:
        pipe.serve(side.run)
    finally:
        side.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
