"""MiniWoB++ as a suite: the names of its tasks. Its pages are in ``miniwob``."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from dart_gui.config import EnvConfig
from dart_gui.env.browser.chromium import describe_chromium
from dart_gui.env.protocol import EnvCluster
from dart_gui.env.suites import Suite

_PAGE_SETTINGS = "160x210.v1"
"""Changes whenever the same (task, seed, actions) would give other frames or rewards."""

_DEFAULT = (
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
_PAGES = (
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


def page_name(task_id: str) -> str:
    """The page of a task: ``click-test`` of ``miniwob/click-test``.

    Raises:
        ConfigError: there is no such task.
    """
    return SUITE.check(task_id).partition("/")[2]


def _open_cluster(config: EnvConfig) -> EnvCluster:
    from dart_gui.env.browser.cluster import BrowserCluster

    return BrowserCluster(config)


def _package_version() -> str:
    try:
        return version("miniwob")
    except PackageNotFoundError:
        return "none"


SUITE = Suite(
    name="miniwob",
    task_ids=tuple(f"miniwob/{page}" for page in _PAGES),
    default_tasks=tuple(f"miniwob/{page}" for page in _DEFAULT),
    env_version=f"miniwob-{_package_version()}+{_PAGE_SETTINGS}",
    open_cluster=_open_cluster,
    check_machine=describe_chromium,
)
