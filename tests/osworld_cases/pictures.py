"""GIMP: pictures, and what an image manipulation leaves of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.osworld_cases.case import Case, File, Gold, alike, ruled

Size = tuple[int, int]


def picture(path: Path, content: dict[str, Any]) -> None:
    """A gradient with a circle, then changed."""
    from PIL import Image, ImageDraw, ImageEnhance, ImageOps

    image = Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    ImageDraw.Draw(image).ellipse((4, 8, 24, 28), fill=content.get("circle", (200, 80, 40)))
    for name, factor in content.get("enhance", {}).items():
        image = getattr(ImageEnhance, name)(image).enhance(factor)
    if content.get("mirror"):
        image = ImageOps.mirror(image)
    if content.get("negative"):
        image = ImageOps.invert(image)
    if "size" in content:
        image = image.resize(content["size"])
    if content.get("palette"):
        image = image.quantize(64)
    image.save(path, "PNG")


def canvas(path: Path, content: dict[str, Any]) -> None:
    """A colour, and rectangles of other colours."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", content.get("size", (40, 40)), content.get("color", "white"))
    for box, color in content.get("boxes", []):
        ImageDraw.Draw(image).rectangle(box, fill=color)
    image.save(path, "PNG")


def enhanced(**factors: float) -> dict[str, Any]:
    return {"enhance": factors}


def edited(metric: str, right: dict[str, Any], wrong: dict[str, Any], **gold: Any) -> Case:
    """Compared with the picture that the agent started from."""
    return alike(metric, "a.png", picture, right, wrong, gold=gold)


def framed(*box: int, color: str = "black") -> dict[str, Any]:
    return {"boxes": [(box, color)]}


CASES = [
    edited("check_structure_sim", {}, {"mirror": True}),
    edited("check_structure_sim_resized", {"size": (128, 96)}, {"mirror": True}),
    edited("check_file_exists_and_structure_sim", {}, {"mirror": True}),
    edited(
        "check_brightness_decrease_and_structure_sim",
        enhanced(Brightness=0.8),
        enhanced(Brightness=1.2),
    ),
    edited(
        "check_saturation_increase_and_structure_sim",
        *({"circle": color} for color in ((220, 75, 35), (180, 100, 60))),
        circle=(200, 80, 40),
    ),
    edited(
        "check_contrast_increase_and_structure_sim", enhanced(Contrast=1.2), enhanced(Contrast=0.8)
    ),
    edited("check_palette_and_structure_sim", {"palette": True}, {}),
    edited("check_image_mirror", {"mirror": True}, {}),
    edited("increase_saturation", {}, enhanced(Color=2.0), enhance={"Color": 1.5}),
    edited("decrease_brightness", {}, enhanced(Brightness=0.5), enhance={"Brightness": 0.8}),
    edited("check_sharper", enhanced(Sharpness=3.0), enhanced(Sharpness=0.0)),
    edited("compare_images", {}, {"negative": True}, circle=(200, 80, 40)),
    alike(
        *("compare_images", "a.png", picture, {}, {"mirror": True}),
        reference_base_result=0.9,
    ),
    alike(
        *("check_green_background", "a.png", canvas),
        *({"color": color, **framed(9, 9, 20, 20)} for color in ("lime", "yellow")),
        gold=framed(9, 9, 20, 20),
    ),
    Case(
        metric="compare_image_list",
        files=(
            File(path="a.png", make=picture, right={}, wrong={}),
            File(path="b.png", make=canvas, right={}, wrong=framed(1, 1, 2, 2)),
        ),
        golds=(
            Gold(name="gold-a.png", make=picture, content={}),
            Gold(name="gold-b.png", make=canvas, content={}),
        ),
        gives=True,
    ),
    ruled(
        *("check_triangle_position", "a.png", canvas),  # by the second rarest of the colours
        *(
            {"boxes": [(box, "yellow"), ((0, 0, 0, 0), "black")]}
            for box in ((15, 15, 24, 24), (1, 1, 9, 9))
        ),
    ),
    ruled("check_textbox_on_leftside", "a.png", canvas, framed(1, 9, 20, 12), framed(9, 9, 20, 12)),
    ruled("check_image_size", "a.png", canvas, {}, {"size": (41, 40)}, {"width": 40, "height": 40}),
    ruled("check_image_file_size", "a.png", canvas, {}, {"size": (4000, 4000)}, {"max_size": 2000}),
]
