"""The utilisation benchmark's figures as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.results import describe, table, verdict
from benchmarks.stats import Spread, paired_ratios
from benchmarks.utilisation import published
from benchmarks.utilisation.figures import GOAL, Played, ceiling, shares_of_gain
from benchmarks.utilisation.meter import Part

OURS, PUBLISHED = "ours", "published"
Episodes = Mapping[str, Sequence[Played]]
Figure = Callable[[Played], float]


def render(values: dict[str, Any], episodes: Episodes) -> str:
    return "\n\n".join(
        [
            "# An episode on our cluster and the published client's way",
            f"    {values['command']}",
            describe(values["machine"]),
            _figures(episodes),
            _verdicts(episodes),
            "## Where the seconds go",
            "Median seconds of an episode, in the order in which they are spent:",
            _parts(episodes),
            "## What the gain is made of",
            _gain(episodes),
            "## How it was measured",
            _method(values, episodes),
        ]
    )


FIGURES: tuple[tuple[str, Figure, int], ...] = (
    ("wall clock (s)", lambda each: each.wall_s, 1),
    ("of it not the model's (s)", lambda each: each.own_s, 1),
    ("utilisation of the time that is not the model's (%)", lambda e: 100 * e.own_utilisation(), 1),
    (
        "the same, settling counted as idle (%)",
        lambda e: 100 * e.own_utilisation(settling=False),
        1,
    ),
    ("utilisation of the whole episode (%)", lambda e: 100 * e.utilisation(), 1),
    (
        "the same, settling counted as idle (%)",
        lambda e: 100 * e.utilisation(settling=False),
        1,
    ),
)


def ratio(episodes: Episodes, figure: Figure) -> Spread:
    """Ours to published, within the rounds, in which the model is as slow on both sides."""
    ours, theirs = ([figure(each) for each in episodes[name]] for name in (OURS, PUBLISHED))
    return Spread.of(paired_ratios(ours, theirs))


def _figures(episodes: Episodes) -> str:
    rows = []
    for title, figure, digits in FIGURES:
        shown = [
            Spread.of([figure(each) for each in episodes[name]]).show(digits)
            for name in (OURS, PUBLISHED)
        ]
        rows.append([title, *shown, ratio(episodes, figure).show(2)])
    return table(["", OURS, PUBLISHED, "ours to published"], rows)


def _verdicts(episodes: Episodes) -> str:
    own = ratio(episodes, lambda each: each.own_utilisation())
    whole = ratio(episodes, lambda each: each.utilisation())
    shorter = 1 / ratio(episodes, lambda each: each.wall_s).median
    less = 1 / ratio(episodes, lambda each: each.own_s).median
    most = ceiling(episodes[PUBLISHED])
    return "\n".join(
        [
            f"- Utilisation of the time that is not the model's: {own.show()} times the published one "
            f"(goal {GOAL:g}: {verdict(own.median >= GOAL)}).",
            f"- Utilisation of the whole episode: {whole.show()} times (goal {GOAL:g}: "
            f"{verdict(whole.median >= GOAL)}). Most of our episode is the model's time, and with one "
            "trajectory per desktop nothing can be done with a desktop meanwhile; a faster action or "
            "screenshot, being less work, even lowers this figure.",
            f"- The episode is {shorter:.1f} times shorter; an environment that took no time at all "
            f"would make it {most:.1f} times shorter. What the environment adds to the model's time is "
            f"{less:.1f} times less.",
        ]
    )


def _parts(episodes: Episodes) -> str:
    def cell(name: str, part: Part) -> str:
        return f"{statistics.median(each.seconds[part] for each in episodes[name]):.2f}"

    rows = [[part.value, *(cell(name, part) for name in episodes)] for part in _order()]
    walls = [f"{_median(episodes[name]):.2f}" for name in episodes]
    return table(["", *episodes], [*rows, ["all", *walls]])


def _order() -> list[Part]:
    return list(Part)


def _median(episodes: Sequence[Played]) -> float:
    return statistics.median(each.wall_s for each in episodes)


def _gain(episodes: Episodes) -> str:
    ours, theirs = _median(episodes[OURS]), _median(episodes[PUBLISHED])
    ablated = {
        name: _median(played) for name, played in episodes.items() if name not in (OURS, PUBLISHED)
    }
    shares = shares_of_gain(ours, theirs, ablated)
    rows = [
        [name, f"{ablated[name]:.1f}", f"{ablated[name] - ours:+.1f}", f"{100 * share:.0f}"]
        for name, share in shares.items()
    ]
    head = ["ours, but", "wall clock (s)", "to ours (s)", "share of the gain (%)"]
    return (
        f"Of the {theirs - ours:.1f} s between the two, by putting one trait of the published way into "
        f"ours at a time:\n\n{table(head, rows)}\n\n"
        f"Together {100 * sum(shares.values()):.0f} %; what is missing from 100 is what traits cost "
        "together and not alone, what is above it what they cost only once, and chance."
    )


def _method(values: dict[str, Any], episodes: Episodes) -> str:
    rounds = len(episodes[OURS])
    tree = (
        "The accessibility tree is fetched on each step as by the published runner."
        if values["tree"]
        else "The accessibility tree that the published runner fetches on each step is left out: this "
        "desktop does not serve it."
    )
    return (
        f"{rounds} episodes of {values['num_steps']} steps for each arm, provider "
        f"`{values['provider']}`, {values['width']} x {values['height']}; median (min-max). All arms "
        "play at the same time, on a desktop each: an episode is nearly all waiting. The model is a "
        f"sleep of {values['low_s']:g} to {values['high_s']:g} s, uniform, drawn by the number of the "
        "round: in a round it is equally slow for every arm. The task opens a terminal; the steps "
        "are click, typing a command, click, ctrl+l, scroll, and again; at the end the evaluation must "
        "find what was typed.\n\n"
        "**Utilisation** is the share of the time that a desktop is held (from when an episode wants it "
        "until it is gone) in which the environment works. Work is a request that it carries out: "
        "boot, set-up, action, screenshot, evaluation, end; and settling, which is the time until the "
        "screen has been seen to react and to rest. A fixed wait is idle, those inside of the generated "
        "code too, and so is the time in which the model answers. Since settling is waiting too, if not "
        "a fixed one, the figures without it are given beside. Each side is measured by its own work: a "
        "slow action counts in favour of whoever makes it. With a warm pool a boot is outside of the "
        "episode and counted nowhere; the spare desktop takes memory meanwhile.\n\n"
        f"**Published** is what its public sources do: {values['reset_wait_s']:g} s after a reset, "
        f"{published.STEP_WAIT_S:g} s after each action, {published.STOP_WAIT_S:g} s after the end; "
        "a desktop is booted for the episode; an action is a `python -c` process with the code that its "
        f"parser generates for pyautogui {published.PACKAGES[0].partition('==')[2]}; a screenshot is "
        "a `scrot` process and a file. The same desktop and guest API serve it, so its virtual machine, "
        "which boots in 12 to 19 s by its own logs, is not held against it; neither are its polling "
        "for the boot (1 s), the second writing of each screenshot, the imports of pyautogui that are "
        f"for screenshots, and the grace of 10 s for its containers. {tree}"
    )
