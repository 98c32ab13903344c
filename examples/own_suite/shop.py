"""A suite of one's own: the HTML pages of a folder, and a reward in Python."""

from pathlib import Path

from dart_gui.env.browser.web_pages import State, page_suite
from dart_gui.types import Evaluation, Task


def reward(task: Task, state: State) -> float | Evaluation:
    """What the last state is worth. ``state`` is what the page's ``dartTask.state()`` returned."""
    if task.task_id != "shop/order":
        return state["reward"]  # the page knows
    if not state["paid"] or state["wanted"] not in state["cart"]:
        return 0.0
    # Anything else in the cart costs: half for one thing too many, a third for two, ...
    share = 1 / len(state["cart"])
    return Evaluation(reward=share, success=share == 1)


SUITE = page_suite("shop", Path(__file__).parent / "pages", reward=reward)
