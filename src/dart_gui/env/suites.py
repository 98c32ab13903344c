"""Which tasks there are, and which seeds are for training and which for evaluation."""

from __future__ import annotations

import difflib
import random
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from dart_gui.errors import ConfigError

TRAIN_SEEDS = range(0, 2**30)
EVAL_SEEDS = range(2**30, 2**31)
"""Disjoint from ``TRAIN_SEEDS``: an instance that was evaluated on was never trained on."""

_PAGE_SETTINGS = "160x210.v1"
"""Changes whenever the same (task, seed, actions) would give other frames or rewards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A family of tasks under one name; task ids are ``<suite>/<page>``."""

    name: str
    task_ids: tuple[str, ...]  # all, sorted
    default_tasks: tuple[str, ...]
    env_version: str  # equal versions replay equally

    def check(self, task_id: str) -> str:
        """``task_id`` itself.

        Raises:
            ConfigError: there is no such task; the text names the nearest.
        """
        if task_id in self.task_ids:
            return task_id
        near = difflib.get_close_matches(task_id, self.task_ids, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"there is no task {task_id!r} among the {len(self.task_ids)} of the suite "
            f"{self.name}{hint}"
        )

    def page_name(self, task_id: str) -> str:
        """The page of a task: ``click-test`` of ``miniwob/click-test``."""
        return self.check(task_id).partition("/")[2]


def get_suite(name: str) -> Suite:
    """Raises ``ConfigError`` for a name other than ``miniwob``."""
    if name != "miniwob":
        raise ConfigError(f"there is no suite {name!r}; the suites are: miniwob")
    return Suite(
        name="miniwob",
        task_ids=tuple(f"miniwob/{page}" for page in _MINIWOB_PAGES),
        default_tasks=tuple(f"miniwob/{page}" for page in _MINIWOB_DEFAULT),
        env_version=f"miniwob-{_package_version()}+{_PAGE_SETTINGS}",
    )


def train_seed(rng: random.Random) -> int:
    """A seed for training, uniform over ``TRAIN_SEEDS``."""
    return rng.randrange(TRAIN_SEEDS.start, TRAIN_SEEDS.stop)


def eval_seed(index: int) -> int:
    """The ``index``-th seed for evaluation: the same held-out instances in every run.

    Raises:
        IndexError: ``index`` is negative or past the last one.
    """
    if index < 0:
        raise IndexError(f"evaluation seeds are counted from 0, got {index}")
    return EVAL_SEEDS[index]


def _package_version() -> str:
    try:
        return version("miniwob")
    except PackageNotFoundError:
        return "none"


_MINIWOB_DEFAULT = (
    "click-test",
    "click-dialog",
    "click-color",
    "focus-text-2",
    "grid-coordinate",
    "click-button-sequence",
    "click-collapsible",
    "enter-text",
)

# What miniwob 1.1.0 registers outside flight.*, as data: importing the package for its registry
# imports Gymnasium and Selenium. A test compares the two.
_MINIWOB_PAGES = (
    "ascending-numbers",
    "bisect-angle",
    "book-flight",
    "book-flight-nodelay",
    "buy-ticket",
    "choose-date",
    "choose-date-easy",
    "choose-date-medium",
    "choose-date-nodelay",
    "choose-list",
    "circle-center",
    "click-button",
    "click-button-sequence",
    "click-checkboxes",
    "click-checkboxes-large",
    "click-checkboxes-soft",
    "click-checkboxes-transfer",
    "click-collapsible",
    "click-collapsible-2",
    "click-collapsible-2-nodelay",
    "click-collapsible-nodelay",
    "click-color",
    "click-dialog",
    "click-dialog-2",
    "click-link",
    "click-menu",
    "click-menu-2",
    "click-option",
    "click-pie",
    "click-pie-nodelay",
    "click-scroll-list",
    "click-shades",
    "click-shape",
    "click-tab",
    "click-tab-2",
    "click-tab-2-easy",
    "click-tab-2-hard",
    "click-tab-2-medium",
    "click-test",
    "click-test-2",
    "click-test-transfer",
    "click-widget",
    "copy-paste",
    "copy-paste-2",
    "count-shape",
    "count-sides",
    "daily-calendar",
    "drag-box",
    "drag-circle",
    "drag-cube",
    "drag-items",
    "drag-items-grid",
    "drag-shapes",
    "drag-shapes-2",
    "drag-single-shape",
    "drag-sort-numbers",
    "draw-circle",
    "draw-line",
    "email-inbox",
    "email-inbox-delete",
    "email-inbox-forward",
    "email-inbox-forward-nl",
    "email-inbox-forward-nl-turk",
    "email-inbox-important",
    "email-inbox-nl-turk",
    "email-inbox-noscroll",
    "email-inbox-reply",
    "email-inbox-star-reply",
    "enter-date",
    "enter-password",
    "enter-text",
    "enter-text-2",
    "enter-text-dynamic",
    "enter-time",
    "find-greatest",
    "find-midpoint",
    "find-word",
    "focus-text",
    "focus-text-2",
    "form-sequence",
    "form-sequence-2",
    "form-sequence-3",
    "generate-number",
    "grid-coordinate",
    "guess-number",
    "highlight-text",
    "highlight-text-2",
    "hot-cold",
    "identify-shape",
    "login-user",
    "login-user-popup",
    "multi-layouts",
    "multi-orderings",
    "navigate-tree",
    "number-checkboxes",
    "odd-or-even",
    "order-food",
    "phone-book",
    "read-table",
    "read-table-2",
    "resize-textarea",
    "right-angle",
    "scroll-text",
    "scroll-text-2",
    "search-engine",
    "sign-agreement",
    "simple-algebra",
    "simple-arithmetic",
    "social-media",
    "social-media-all",
    "social-media-some",
    "stock-market",
    "terminal",
    "text-editor",
    "text-transform",
    "tic-tac-toe",
    "unicode-test",
    "use-autocomplete",
    "use-autocomplete-nodelay",
    "use-colorwheel",
    "use-colorwheel-2",
    "use-slider",
    "use-slider-2",
    "use-spinner",
    "visual-addition",
)
