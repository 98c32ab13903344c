"""Steps per second and memory per environment: our browser cluster, and the official environment."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import Progress

from benchmarks import results
from benchmarks.browser.contestants import Contestant, Measured, Official, Ours, closing
from benchmarks.browser.report import OFFICIAL, OURS, SCREENSHOTS, BrowserResult, render
from benchmarks.browser.workload import Order
from benchmarks.processes import exit_on_sigterm

TASKS = ("click-test-2", "click-collapsible")
WARM_UP_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    tasks: list[str]
    ours_sizes: list[int]
    official_sizes: list[int]
    search_s: float
    round_s: float
    num_rounds: int
    browser: str
    driver: str

    @property
    def num_runs(self) -> int:
        sizes = len(self.ours_sizes) + 2 * len(self.official_sizes)
        return sizes + 3 * self.num_rounds


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    exit_on_sigterm()
    plan = Plan(
        tasks=args.tasks.split(","),
        ours_sizes=_numbers(args.ours),
        official_sizes=_numbers(args.official),
        search_s=args.search_s,
        round_s=args.round_s,
        num_rounds=args.rounds,
        browser=_executable(args.browser),
        driver=_executable(args.driver),
    )
    with Progress() as progress:
        bar = progress.add_task("starting the browsers", total=plan.num_runs)

        def say(text: str) -> None:
            progress.update(bar, description=text, advance=1)

        result = measure(plan, say)
    values = {"command": results.command(argv), "machine": results.machine(), **result.to_json()}
    path = results.save(args.out, args.name, values, render(values, result))
    print(path.read_text(encoding="utf-8"))


def measure(plan: Plan, say: Callable[[str], None]) -> BrowserResult:
    """The best number of environments of each side, then rounds of all in turn."""
    with closing(Ours(plan.tasks, max(plan.ours_sizes))) as ours:
        searches = {OURS: _search(ours, OURS, plan.ours_sizes, plan, say)}
    with ExitStack() as stack:
        official = stack.enter_context(closing(_official(plan, max(plan.official_sizes))))
        for name in (OFFICIAL, SCREENSHOTS):
            searches[name] = _search(official, name, plan.official_sizes, plan, say)
    best = {name: _best(found) for name, found in searches.items()}
    with ExitStack() as stack:
        ours = stack.enter_context(closing(Ours(plan.tasks, best[OURS])))
        num_official = max(best[OFFICIAL], best[SCREENSHOTS])
        official = stack.enter_context(closing(_official(plan, num_official)))
        sides: dict[str, Contestant] = {OURS: ours, OFFICIAL: official, SCREENSHOTS: official}
        rounds: dict[str, list[Measured]] = {name: [] for name in sides}
        for name, number in _turns(list(sides), plan.num_rounds):
            say(f"round {number + 1} of {plan.num_rounds}: {name}")
            rounds[name].append(_run(sides[name], name, best[name], plan.round_s))
    settings = asdict(plan)
    return BrowserResult(settings=settings, searches=searches, best=best, rounds=rounds)


def _turns(names: list[str], num_rounds: int) -> Iterator[tuple[str, int]]:
    """Every round has each side once; every other round in the opposite order."""
    for number in range(num_rounds):
        for name in names if number % 2 == 0 else reversed(names):
            yield name, number


def _search(
    side: Contestant, name: str, sizes: list[int], plan: Plan, say: Callable[[str], None]
) -> list[Measured]:
    found = []
    for size in sizes:
        say(f"searching: {name}, {size} environments")
        found.append(_run(side, name, size, plan.search_s))
    return found


def _best(found: Sequence[Measured]) -> int:
    return max(found, key=lambda each: each.steps_per_s).num_envs


def _run(side: Contestant, name: str, size: int, run_s: float) -> Measured:
    with_dom = name != SCREENSHOTS
    side.run(Order(run_s=WARM_UP_S, num_envs=size, with_dom=with_dom))
    return side.run(Order(run_s=run_s, num_envs=size, with_dom=with_dom))


def _official(plan: Plan, size: int) -> Official:
    return Official(plan.tasks, size, browser=plan.browser, driver=plan.driver)


def _executable(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise SystemExit(
            f"{name} was not found. The official environment needs a Chromium and the chromedriver "
            "of the same version: `apt-get install chromium chromium-driver`, or name them with "
            "--browser and --driver."
        )
    return found


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.browser",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--tasks", default=",".join(TASKS), help="MiniWoB++ pages, in equal shares")
    parser.add_argument("--ours", default="4,8,16,24", help="our numbers of environments to try")
    parser.add_argument("--official", default="2,4,6,8", help="the official ones to try")
    parser.add_argument("--search-s", type=float, default=4.0, help="seconds of each try")
    parser.add_argument("--round-s", type=float, default=8.0, help="seconds of each side per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--browser", default="chromium", help="of the official environment")
    parser.add_argument("--driver", default="chromedriver", help="of the official environment")
    parser.add_argument("--name", default="browser", help="of the report")
    parser.add_argument("--out", type=Path, default=results.RESULTS, help="folder of the results")
    return parser


if __name__ == "__main__":
    main()
