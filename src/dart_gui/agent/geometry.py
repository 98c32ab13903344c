"""From pixels of the screen to pixels of the image that the model sees, and back.

Qwen2.5-VL reads and writes absolute coordinates in the image after ``smart_resize``: its sides are
multiples of ``factor`` and its area lies within limits that the model folder names. Agent, engine
and trainer all take the limits from :meth:`ImageLimits.from_model`, so they cannot disagree.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dart_gui.errors import ConfigError, SetupError
from dart_gui.types import Point

MAX_ASPECT_RATIO = 200
_DEFAULT_MIN_PIXELS = 56 * 56
_DEFAULT_MAX_PIXELS = 28 * 28 * 1280
_DEFAULT_PATCH_SIZE = 14
_DEFAULT_MERGE_SIZE = 2


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Area limits of the resized image in pixels; its sides are multiples of ``factor``.

    Raises:
        ValueError: a limit is not positive, or the two exclude each other.
    """

    min_pixels: int
    max_pixels: int
    factor: int = 28

    def __post_init__(self) -> None:
        if not (1 <= self.min_pixels <= self.max_pixels and self.factor >= 1):
            raise ValueError(
                f"image limits need 1 <= min_pixels <= max_pixels and factor >= 1, got {self}"
            )

    @classmethod
    def from_model(cls, model_dir: Path) -> ImageLimits:
        """Read the limits of a Hugging Face folder; a missing key has transformers' default.

        ``size.shortest_edge`` and ``size.longest_edge`` are areas here, despite their names; the
        older ``min_pixels`` and ``max_pixels`` override them, as in transformers' Qwen2-VL image
        processor.

        Raises:
            SetupError: the folder has no image processor configuration.
            ConfigError: the configuration is there and makes no sense.
        """
        path, tree = _read_processor_config(model_dir)
        size = tree.get("size") or {}
        try:
            minimum = tree.get("min_pixels") or size.get("shortest_edge") or _DEFAULT_MIN_PIXELS
            maximum = tree.get("max_pixels") or size.get("longest_edge") or _DEFAULT_MAX_PIXELS
            patch = tree.get("patch_size") or _DEFAULT_PATCH_SIZE
            merge = tree.get("merge_size") or _DEFAULT_MERGE_SIZE
            return cls(int(minimum), int(maximum), int(patch) * int(merge))
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{path} has image limits that make no sense: {error}") from None


def _read_processor_config(model_dir: Path) -> tuple[Path, dict[str, Any]]:
    """The image processor's settings and the file that they came from."""
    path = model_dir / "preprocessor_config.json"
    nested = model_dir / "processor_config.json"
    if not path.is_file() and nested.is_file():
        path = nested
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SetupError(
            f"{model_dir} is not a model folder: cannot read its {path.name} "
            f"({error.strerror or error}). Set model.path to the folder of a Qwen2.5-VL model."
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if path == nested and isinstance(tree, dict):
        tree = tree.get("image_processor")
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no settings of an image processor")
    return path, tree


def smart_resize(height: int, width: int, limits: ImageLimits) -> tuple[int, int]:
    """Height and width in pixels of the image that the model sees.

    Formula: transformers ``models/qwen2_vl/image_processing_qwen2_vl.py``, ``smart_resize``.

    >>> smart_resize(1080, 1920, ImageLimits(100 * 28 * 28, 16384 * 28 * 28))
    (1092, 1932)

    Raises:
        ValueError: a side is not positive, or one is more than 200 times the other.
    """
    if min(height, width) < 1:
        raise ValueError(f"an image needs positive sides, got {width}x{height}")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ValueError(
            f"one side of an image may be at most {MAX_ASPECT_RATIO} times the other, "
            f"got {width}x{height}"
        )
    factor = limits.factor
    # Python's round (half to even) is what the model's own processor uses.
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > limits.max_pixels:
        beta = math.sqrt((height * width) / limits.max_pixels)
        new_height = max(factor, math.floor(height / beta / factor) * factor)
        new_width = max(factor, math.floor(width / beta / factor) * factor)
    elif new_height * new_width < limits.min_pixels:
        beta = math.sqrt(limits.min_pixels / (height * width))
        new_height = math.ceil(height * beta / factor) * factor
        new_width = math.ceil(width * beta / factor) * factor
    return new_height, new_width


@dataclass(frozen=True)
class Geometry:
    """One screen of ``screen_width`` x ``screen_height`` pixels as a model with ``limits`` sees it.

    Points outside of the image are mapped like any other: whether an action can be carried out is
    for the environment to say.
    """

    screen_width: int
    screen_height: int
    limits: ImageLimits

    @cached_property
    def model_size(self) -> tuple[int, int]:
        """Height and width of the resized image. Raises ValueError as :func:`smart_resize`."""
        return smart_resize(self.screen_height, self.screen_width, self.limits)

    def to_screen(self, x: float, y: float) -> Point:
        """Coordinates in the resized image as screen pixels. Raises ValueError if not finite."""
        height, width = self.model_size
        point = Point(x / width * self.screen_width, y / height * self.screen_height)
        if not (math.isfinite(point.x) and math.isfinite(point.y)):
            raise ValueError(f"coordinates must be finite, got ({x}, {y})")
        return point

    def to_model(self, point: Point) -> tuple[int, int]:
        """``(x, y)`` in the resized image, rounded; inverts :meth:`to_screen` on integers."""
        height, width = self.model_size
        x = round(point.x / self.screen_width * width)
        y = round(point.y / self.screen_height * height)
        return x, y
