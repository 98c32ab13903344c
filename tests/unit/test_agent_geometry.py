import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dart_gui.agent.geometry import Geometry, ImageLimits, smart_resize
from dart_gui.errors import ConfigError, SetupError
from dart_gui.types import Point

UI_TARS = ImageLimits(100 * 28 * 28, 16384 * 28 * 28)


@pytest.mark.parametrize(
    ("screen", "expected"),
    [
        ((1080, 1920), (1092, 1932)),  # rounds up to multiples of 28
        ((210, 160), (336, 252)),  # below the minimum: times sqrt(78400 / 33600) is 320.8 x 244.4
        ((8000, 8000), (3584, 3584)),  # above the maximum: 3584 = 128 * 28 exactly
    ],
)
def test_smart_resize_matches_hand_worked_sizes(
    screen: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert smart_resize(*screen, UI_TARS) == expected


def test_smart_resize_rounds_half_to_even_as_the_model_does() -> None:
    assert smart_resize(42, 70, ImageLimits(1, 10**6)) == (56, 56)  # 1.5 -> 2 and 2.5 -> 2


@pytest.mark.parametrize("screen", [(1, 201), (201, 1), (0, 5), (5, -1)])
def test_smart_resize_refuses_impossible_screens(screen: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"got {screen[1]}x{screen[0]}"):
        smart_resize(*screen, UI_TARS)


@given(st.integers(1, 5000), st.integers(1, 5000))
@settings(deadline=None)
def test_smart_resize_keeps_to_the_limits(height: int, width: int) -> None:
    if max(height, width) > 200 * min(height, width):
        return
    new_height, new_width = smart_resize(height, width, UI_TARS)
    assert new_height % 28 == 0
    assert new_width % 28 == 0
    assert new_height * new_width >= UI_TARS.min_pixels
    # max(factor, ...) lets a very flat image exceed the maximum; these never are that flat
    assert new_height * new_width <= UI_TARS.max_pixels


def test_a_point_scales_by_the_ratio_of_the_sides() -> None:
    geometry = Geometry(1920, 1080, UI_TARS)
    point = geometry.to_screen(966, 273)
    assert point == Point(960.0, 270.0)
    assert geometry.to_model(point) == (966, 273)


def test_points_outside_of_the_image_are_kept() -> None:
    geometry = Geometry(280, 280, ImageLimits(1, 10**6))
    assert geometry.to_screen(-5, 300) == Point(-5.0, 300.0)


@given(
    st.integers(-3000, 6000),
    st.integers(-3000, 6000),
    st.integers(50, 4000),
    st.integers(50, 4000),
)
@settings(deadline=None)
def test_model_coordinates_survive_the_way_to_the_screen_and_back(
    x: int, y: int, width: int, height: int
) -> None:
    geometry = Geometry(width, height, UI_TARS)
    assert geometry.to_model(geometry.to_screen(x, y)) == (x, y)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_coordinates_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Geometry(1920, 1080, UI_TARS).to_screen(value, 0)


def test_limits_must_not_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="min_pixels"):
        ImageLimits(100, 99)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        (
            {
                "size": {"shortest_edge": 3136, "longest_edge": 100000},
                "patch_size": 14,
                "merge_size": 2,
            },
            ImageLimits(3136, 100000, 28),
        ),
        ({"min_pixels": 784, "max_pixels": 7840}, ImageLimits(784, 7840, 28)),
        (
            {"min_pixels": 784, "size": {"shortest_edge": 1, "longest_edge": 9999}},
            ImageLimits(784, 9999, 28),
        ),
        ({"patch_size": 16}, ImageLimits(3136, 1003520, 32)),
        ({"min_pixels": None, "size": None}, ImageLimits(3136, 1003520, 28)),
    ],
)
def test_limits_come_from_the_model_folder(
    tmp_path: Path, tree: object, expected: ImageLimits
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(tree))
    assert ImageLimits.from_model(tmp_path) == expected


def test_limits_may_be_in_the_processor_config(tmp_path: Path) -> None:
    tree = {"image_processor": {"min_pixels": 784, "max_pixels": 7840}}
    (tmp_path / "processor_config.json").write_text(json.dumps(tree))
    assert ImageLimits.from_model(tmp_path) == ImageLimits(784, 7840, 28)


def test_a_folder_without_processor_is_not_a_model_folder(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="not a model folder"):
        ImageLimits.from_model(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "\xff",
        '{"min_pixels": "many"}',
        '{"min_pixels": 9, "max_pixels": 8}',
        '{"size": 3}',
    ],
)
def test_a_processor_config_without_sense_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "preprocessor_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json"):
        ImageLimits.from_model(tmp_path)
