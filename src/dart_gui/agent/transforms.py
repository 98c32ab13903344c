"""What an agent does to a screenshot before the model sees it: PNG in, PNG out.

A transform is named in ``dart_agent.json`` of the model folder. What it returns is what is hashed,
sent and stored, so the rollout engine and the trainer see the same bytes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from dart_gui.errors import ConfigError

Transform = Callable[[bytes], bytes]

_RULER_DEPTH = 0.2


def identity(png: bytes) -> bytes:
    return png


def ruler(png: bytes) -> bytes:
    """Darken red from left to right and green from top to bottom, linearly, by up to 20 %.

    R' = R (1 - 0.2 x / (W - 1)) and G' = G (1 - 0.2 y / (H - 1)), rounded. Positions are relative
    in this architecture, so a small model reads an absolute coordinate only where the pixels carry
    it.
    """
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.array(image.convert("RGB"))
    height, width = pixels.shape[:2]
    # float64 products of small integers: the same bytes on every machine
    across = 1.0 - _RULER_DEPTH * np.arange(width) / max(1, width - 1)
    down = 1.0 - _RULER_DEPTH * np.arange(height) / max(1, height - 1)
    pixels[..., 0] = np.rint(pixels[..., 0] * across[None, :])
    pixels[..., 1] = np.rint(pixels[..., 1] * down[:, None])
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=1)
    return out.getvalue()


_TRANSFORMS: Mapping[str, Transform] = {"identity": identity, "ruler": ruler}


def load_transform(model_dir: Path) -> Transform:
    """The transform that the model folder names; identity where it names none.

    Raises:
        ConfigError: ``dart_agent.json`` cannot be read, or names a transform that does not exist.
    """
    path = model_dir / "dart_agent.json"
    if not path.exists():
        return identity
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    name = settings.get("transform", "identity") if isinstance(settings, dict) else settings
    if not isinstance(name, str) or name not in _TRANSFORMS:
        raise ConfigError(
            f"{path} names the transform {name!r}, which does not exist; "
            f"there is {' and '.join(_TRANSFORMS)}"
        )
    return _TRANSFORMS[name]
