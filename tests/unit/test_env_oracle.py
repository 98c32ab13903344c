"""The largest free rectangle of a target."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_gui.env.browser.oracle import largest_box


def test_a_whole_rectangle_is_its_own_box() -> None:
    points = {(x, y) for x in range(3, 8) for y in range(10, 12)}
    assert largest_box(points) == (3, 10, 7, 11)


def test_a_covered_corner_leaves_the_larger_part() -> None:
    whole = {(x, y) for x in range(10) for y in range(10)}
    cover = {(x, y) for x in range(4, 10) for y in range(7, 10)}
    assert largest_box(whole - cover) == (0, 0, 9, 6)  # 70 pixels, against 40 in the left columns


def test_nothing_to_click_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot be reached"):
        largest_box(set())


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_it_is_the_largest_of_all_rectangles_inside(points: set[tuple[int, int]]) -> None:
    def area(box: tuple[float, float, float, float]) -> int:
        x0, y0, x1, y1 = (int(v) for v in box)
        inside = {(x, y) for x in range(x0, x1 + 1) for y in range(y0, y1 + 1)} <= points
        return (x1 - x0 + 1) * (y1 - y0 + 1) if inside else 0

    every = [(a, b, c, d) for a, b in points for c, d in points if a <= c and b <= d]
    assert area(largest_box(points)) == max(map(area, every))
