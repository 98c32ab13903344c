"""Scripted solutions of the default tasks, for demonstrations and tests.

They read the page's DOM. An agent never does: it sees screenshots.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from dart_gui.env.browser.page_env import PageEnv
from dart_gui.errors import ConfigError
from dart_gui.types import Action, Click, Point, TypeText

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in screen pixels."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The next correct action. ``box`` bounds the points that are as good as its click's."""

    action: Action
    box: Box | None  # None where the action is not a click
    element: str  # id or tag of the click's target


# Per page, a function body that returns the element to click, or the text to type.
_FOCUS_ORDINAL = """
const n = {'1st': 'tt1', '2nd': 'tt2', '3rd': 'tt3'};
return document.getElementById(n[/(1st|2nd|3rd)/.exec(query)[1]]);
"""
_SOLVERS = {
    "click-test": "return document.getElementById('subbtn');",
    "click-test-2": "return document.getElementById('subbtn');",
    "click-dialog": "return document.querySelector('button.ui-dialog-titlebar-close');",
    "click-color": """
const color = /Click on the (.*) colored box/.exec(core.getUtterance())[1];
return document.querySelector(`#area .color[data-color="${color}"]`);
""",
    "focus-text-2": _FOCUS_ORDINAL,
    "grid-coordinate": """
return document.getElementById(/\\(-?\\d,-?\\d\\)/.exec(query)[0]);
""",
    "click-button-sequence": """
return document.getElementById(buttonsPushed.length === 0 ? 'subbtn' : 'subbtn2');
""",
    "click-collapsible": """
const open = $('.ui-accordion-content:visible').length === 1;
return document.querySelector(open ? '#subbtn' : '#area h3');
""",
    "enter-text": """
const field = document.getElementById('tt');
const wanted = /Enter "(.*)" into/.exec(query)[1];
if (field.value === wanted) return document.getElementById('subbtn');
if (document.activeElement !== field) return field;
return wanted.slice(field.value.length);
""",
}

# The pixels of the element that a click would reach: another element may cover a part of it.
_DECIDE_JS = """
(body) => {
  const query = document.getElementById('query').textContent;
  const target = new Function('query', body)(query);
  if (typeof target === 'string') return {text: target};
  const r = target.getBoundingClientRect();
  const hits = (x, y) => {
    const top = document.elementFromPoint(x, y);
    return top !== null && (top === target || target.contains(top));
  };
  const points = [];
  for (let y = Math.max(0, Math.ceil(r.top)); y < Math.min(210, Math.floor(r.bottom)); y++)
    for (let x = Math.max(0, Math.ceil(r.left)); x < Math.min(160, Math.floor(r.right)); x++)
      if (hits(x, y)) points.push([x, y]);
  // As text: a list of thousands of pairs takes Playwright longer to pass on than all else here.
  return {points: JSON.stringify(points), element: target.id || target.tagName.toLowerCase()};
}
"""


async def decide(env: PageEnv) -> Decision:
    """The next correct action for the state that the page of ``env`` is in.

    Raises:
        ConfigError: the task has no scripted solution.
        EnvError: the page broke.
    """
    body = _SOLVERS.get(env.task.task_id.partition("/")[2])
    if body is None:
        known = ", ".join(f"miniwob/{page}" for page in _SOLVERS)
        raise ConfigError(f"{env.task.task_id} has no scripted solution; these have: {known}")
    async with env.slot.operation(f"solving {env.task.task_id}"):
        found = await env.slot.page.evaluate(_DECIDE_JS, body)
    if "text" in found:
        return Decision(TypeText(text=found["text"]), None, "")
    box = largest_box({(int(x), int(y)) for x, y in json.loads(found["points"])})
    center = Point((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    return Decision(Click(point=center), box, found["element"])


async def next_action(env: PageEnv) -> Action:
    """The action of :func:`decide`."""
    return (await decide(env)).action


async def target_box(env: PageEnv) -> Box | None:
    """The box of :func:`decide`: any point in it is as good a click. None where no click is due."""
    return (await decide(env)).box


def largest_box(points: set[tuple[int, int]]) -> Box:
    """The largest rectangle of pixels that are all in ``points``, as (x0, y0, x1, y1), inclusive.

    >>> largest_box({(0, 0), (1, 0), (2, 0), (1, 1)})
    (0, 0, 2, 0)

    Raises:
        ValueError: ``points`` is empty.
    """
    if not points:
        raise ValueError("the target cannot be reached by a click")
    best: tuple[int, Box] | None = None
    heights: dict[int, int] = {}
    x_min, x_max = min(x for x, _ in points), max(x for x, _ in points)
    for y in range(min(y for _, y in points), max(y for _, y in points) + 1):
        for x in range(x_min, x_max + 1):
            heights[x] = heights.get(x, 0) + 1 if (x, y) in points else 0
        for x in range(x_min, x_max + 1):
            height = heights[x]
            for right in range(x, x_max + 1):
                height = min(height, heights[right])
                if height == 0:
                    break
                area = height * (right - x + 1)
                if best is None or area > best[0]:
                    best = (area, (x, y - height + 1, right, y))
    assert best is not None
    return best[1]
