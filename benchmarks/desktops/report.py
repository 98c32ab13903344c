"""The figures of desktops as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.desktops.probe import Probed
from benchmarks.results import describe, table
from benchmarks.stats import Spread

GB = 1e9


def desktops_per_gb(bytes_each: Sequence[float]) -> float:
    """How many desktops fit into 10^9 bytes, if each takes the mean.

    Raises:
        ValueError: nothing was measured.
    """
    if not bytes_each or min(bytes_each) <= 0:
        raise ValueError(f"desktops take memory, got {list(bytes_each)}")
    return GB / statistics.fmean(bytes_each)


def render(values: dict[str, Any], probed: Mapping[str, Probed], missing: Mapping[str, str]) -> str:
    names = list(probed)
    rows = [
        [title, *(figures[at] for figures in map(_column, probed.values()))]
        for at, title in enumerate(_titles(probed))
    ]
    lacking = "\n".join(f"- `{name}` was not measured: {why}" for name, why in missing.items())
    return "\n\n".join(
        part
        for part in (
            "# What desktops cost",
            f"    {values['command']}",
            describe(values["machine"]),
            table(["", *names], rows) if names else "",
            lacking,
            _method(values),
        )
        if part
    )


def _titles(probed: Mapping[str, Probed]) -> list[str]:
    actions = next(iter(probed.values())).action_ms if probed else {}
    return [
        "boot (s)",
        "end (s)",
        "reset (s)",
        "reset, warm pool (s)",
        "of it until the desktop is there (ms)",
        "screenshot (ms)",
        "of it grab (ms)",
        "of it PNG (ms)",
        *(f"action: {name} (ms)" for name in actions),
        "memory, bare (MB)",
        "memory, with a terminal (MB)",
        "desktops per GB, bare",
        "desktops per GB, with a terminal",
    ]


def _column(found: Probed) -> list[str]:
    return [
        _show(found.boot_s, 2),
        _show(found.destroy_s, 2),
        _show(found.reset_cold_s, 2),
        _show(found.reset_warm_s, 2),
        _show([1e3 * each for each in found.take_warm_s], 1),
        _show(found.shot_ms, 1),
        _show(found.grab_ms, 1),
        _show(found.encode_ms, 1),
        *(_show(each, 2) for each in found.action_ms.values()),
        _show([each / 1e6 for each in found.bare_bytes], 0),
        _show([each / 1e6 for each in found.window_bytes], 0),
        f"{desktops_per_gb(found.bare_bytes):.1f}",
        f"{desktops_per_gb(found.window_bytes):.1f}",
    ]


def _show(values: Sequence[float], digits: int) -> str:
    return Spread.of(values).show(digits)


def _method(values: dict[str, Any]) -> str:
    plan = values["plan"]
    return (
        f"Median (min-max), screens of {values['width']} x {values['height']}. {plan['num_boots']} boots "
        f"one after the other, each until the guest server answers; {plan['num_resets']} resets: until "
        "there is a desktop, a terminal has been started and is painted, and the first screenshot has "
        f"arrived; {plan['num_shots']} screenshots from request to whole PNG, of which grab and "
        f"encoding are as the guest server reports them; {plan['num_actions']} actions of each kind, "
        "until they are carried out, which is not until the screen shows it. Memory, with "
        f"{plan['num_together']} desktops running at once, is the proportional set size of all processes "
        "of an Xvfb desktop, and of a container what its control group is charged, less cached "
        "files that are not in use; a GB is 10^9 bytes."
    )
