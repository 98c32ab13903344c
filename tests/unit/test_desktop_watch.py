from __future__ import annotations

from collections.abc import Sequence

from dart_gui.env.desktop.screen import Frame, Window, WindowQuery
from dart_gui.env.desktop.watch import POLL_S, Condition, Watcher, num_colors
from dart_gui.fakes import FakeClock

QUERY = WindowQuery(name="app")


def frame(*colors: int) -> Frame:
    """One colour for each four by four pixels, side by side."""
    row = b"".join(color.to_bytes(4, "little") * 4 for color in colors)
    return Frame(pixels=row * 4, width=4 * len(colors), height=4)


def window(*, active: bool = True, x: int = 0, width: int = 4) -> Window:
    return Window(
        window_id=1,
        title="app",
        wm_class=("app", "App"),
        x=x,
        y=0,
        width=width,
        height=4,
        is_active=active,
    )


class Film:
    """The n-th look shows the n-th frame and windows, the last one from then on."""

    def __init__(self, frames: Sequence[Frame], windows: Sequence[list[Window]] = ([],)) -> None:
        self._frames, self._windows = frames, windows
        self.num_looks = 0

    async def grab(self) -> Frame:
        self.num_looks += 1
        return self._frames[min(self.num_looks, len(self._frames)) - 1]

    async def windows(self) -> list[Window]:
        return self._windows[min(self.num_looks, len(self._windows)) - 1]

    def watcher(self) -> Watcher:
        clock = FakeClock()
        return Watcher(self.grab, self.windows, clock=clock, sleep=clock.sleep)


async def test_stable_means_that_nothing_changed_for_so_long() -> None:
    film = Film([frame(1), frame(2), frame(3), frame(3)])
    outcome = await film.watcher().wait(Condition(stable_s=0.1, timeout_s=5))
    assert outcome.met
    # The last change is seen at the third look, after two pauses; 0.1 s of five more follow.
    assert abs(outcome.waited_s - (2 * POLL_S + 0.1)) < POLL_S + 1e-9


async def test_a_screen_that_never_rests_is_given_up_in_time() -> None:
    film = Film([frame(n) for n in range(1000)])
    outcome = await film.watcher().wait(Condition(stable_s=0.1, timeout_s=1.0))
    assert not outcome.met
    assert "changed" in outcome.missing
    assert 1.0 <= outcome.waited_s < 1.0 + 2 * POLL_S


async def test_a_blinking_caret_is_no_change() -> None:
    film = Film([frame(1), frame(2), *[frame(3), frame(2)] * 1000])
    outcome = await film.watcher().wait(Condition(stable_s=0.5, timeout_s=5))
    assert outcome.met
    # Both pictures have been seen after the third look.
    assert abs(outcome.waited_s - (2 * POLL_S + 0.5)) < POLL_S + 1e-9


async def test_a_stable_screen_without_the_window_is_not_ready() -> None:
    film = Film([frame(1)], [[]] * 20 + [[window(active=False)]] * 20 + [[window()]])
    outcome = await film.watcher().wait(Condition(stable_s=0.05, window=QUERY, timeout_s=5))
    assert outcome.met
    assert film.num_looks == 41


async def test_what_is_missing_is_said() -> None:
    absent = await Film([frame(1)]).watcher().wait(Condition(window=QUERY, timeout_s=0.5))
    assert absent.missing == "there is no window 'app'"
    behind = Film([frame(1)], [[window(active=False)]])
    outcome = await behind.watcher().wait(Condition(window=QUERY, timeout_s=0.5))
    assert outcome.missing == "the window 'app' is not the active one"


async def test_a_window_that_is_not_painted_is_not_ready() -> None:
    """The trap of frame stability: an unpainted window is stable too."""
    film = Film([frame(1, 5)] * 30 + [frame(1, 5), frame(2, 5)], [[window()]])
    blank = Condition(stable_s=0.05, window=QUERY, min_colors=2, timeout_s=2)
    outcome = await film.watcher().wait(blank)
    assert not outcome.met
    assert outcome.missing == "1 colours are shown, expected 2"
    painted = Film([frame(1, 5)], [[window(width=8)]])
    assert (await painted.watcher().wait(blank)).met


def test_colours_are_those_of_the_window_only() -> None:
    picture = frame(1, 2, 3)
    assert num_colors(picture) == 3
    assert num_colors(picture, window(x=4, width=8)) == 2
    assert num_colors(picture, window(x=-4, width=8)) == 1
    unused = frame(0x01000001, 0x02000001)
    assert num_colors(unused) == 1
