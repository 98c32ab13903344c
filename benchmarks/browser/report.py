"""The browser benchmark's figures as JSON and Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.browser.contestants import Measured
from benchmarks.results import describe, table, verdict
from benchmarks.stats import Spread, paired_ratios
from dart_gui.env.browser.miniwob import REUSABLE_PAGES

OURS = "dart-gui"
OFFICIAL = "official"
SCREENSHOTS = "official without DOM"
SPEED_GOAL = 3.0
MEMORY_GOAL = 5.0

Figure = Callable[[Measured], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserResult:
    settings: dict[str, Any]
    searches: dict[str, list[Measured]]
    best: dict[str, int]
    rounds: dict[str, list[Measured]]

    def ratio(self, figure: Figure, name: str, *, less_is_more: bool = False) -> Spread:
        """How many times better we are than ``name``, over paired rounds."""
        ours = [figure(each) for each in self.rounds[OURS]]
        theirs = [figure(each) for each in self.rounds[name]]
        return Spread.of(
            paired_ratios(theirs, ours) if less_is_more else paired_ratios(ours, theirs)
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "best": self.best,
            "searches": {name: list(map(asdict, found)) for name, found in self.searches.items()},
            "rounds": {name: list(map(asdict, found)) for name, found in self.rounds.items()},
        }


def render(values: dict[str, Any], result: BrowserResult) -> str:
    return "\n\n".join(
        [
            "# Browser cluster and the official environment",
            f"    {values['command']}",
            describe(values["machine"]),
            _figures(result),
            _ratios(result),
            "## How it was measured",
            _method(result),
            "Search for the best number of environments, steps per second:",
            _searches(result),
        ]
    )


def _figures(result: BrowserResult) -> str:
    def row(name: str) -> list[str]:
        rounds = result.rounds[name]
        return [
            name,
            str(result.best[name]),
            _spread(rounds, lambda each: each.steps_per_s).show(),
            _spread(rounds, lambda each: each.cpu_ms_per_step).show(),
            _spread(rounds, lambda each: each.pss_mib_per_env).show(0),
            _spread(rounds, lambda each: each.browser_pss_mib_per_env).show(0),
        ]

    head = ["", "environments", "steps/s", "CPU ms per step", "MiB per environment"]
    return table([*head, "of it browser and driver"], [row(name) for name in result.rounds])


def _ratios(result: BrowserResult) -> str:
    lines = []
    for name in (OFFICIAL, SCREENSHOTS):
        speed = result.ratio(lambda each: each.steps_per_s, name)
        cpu = result.ratio(lambda each: each.cpu_ms_per_step, name, less_is_more=True)
        memory = result.ratio(lambda each: each.pss_mib_per_env, name, less_is_more=True)
        fast, small = speed.median >= SPEED_GOAL, memory.median >= MEMORY_GOAL
        lines += [
            f"- against the {name}: {speed.show()} times the steps per second (goal "
            f"{SPEED_GOAL:g}: {verdict(fast)}), {cpu.show()} times fewer CPU seconds per step, "
            f"1/{memory.show()} of the memory per environment (goal 1/{MEMORY_GOAL:g}: "
            f"{verdict(small)})."
        ]
    return "\n".join(lines)


def _method(result: BrowserResult) -> str:
    settings = result.settings
    pages = ", ".join(f"`{task}` ({_begins(task)})" for task in settings["tasks"])
    return (
        f"Median (min-max) over {settings['num_rounds']} rounds of {settings['round_s']:g} s; each "
        "round has every side once, in alternating order, and a ratio is taken within its round. "
        "The side that does not run is stopped (SIGSTOP). Memory is the proportional set size of all "
        "processes of a side after a round, divided by its environments.\n\n"
        f"Both sides play {pages}: reset to a seed, then up to 8 left clicks at the same points, which "
        "depend on task, seed and number of the click; a screenshot of 160 x 210 pixels after the "
        "reset and after each click; steps per second include the resets. The official environment is "
        '`gymnasium.make("miniwob/...-v1")`, one process each with its own '
        f"chromedriver and `{Path(settings['browser']).name}`, driven by its action CLICK_COORDS, with "
        "its defaults, without "
        "Gymnasium's checker. It takes no screenshot when a step ends the episode; ours does. "
        '"Without DOM" skips its `core.getDOMInfo()` and the elements built from it, which takes a '
        "patch of the package. Ours lets 300 page milliseconds pass per click, and an "
        "episode of ours begins in place only where it then equals one on a fresh document, frame by "
        "frame; the official one does neither."
    )


def _begins(task: str) -> str:
    """How our episode begins after another one of its task."""
    return "ours begins in place" if task in REUSABLE_PAGES else "ours loads the page"


def _searches(result: BrowserResult) -> str:
    rows = [
        [name, ", ".join(f"{each.num_envs}: {each.steps_per_s:.1f}" for each in found)]
        for name, found in result.searches.items()
    ]
    return table(["", "environments: steps/s"], rows, align="ll")


def _spread(rounds: Sequence[Measured], figure: Figure) -> Spread:
    return Spread.of([figure(each) for each in rounds])
