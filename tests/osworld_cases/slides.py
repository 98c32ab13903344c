"""LibreOffice Impress: decks, and the settings of LibreOffice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.osworld_cases.case import Case, alike, ruled, text

CM = 360_000  # of PowerPoint's units
TITLE = "Product Comparison"


def pptx(path: Path, deck: dict[str, Any]) -> None:
    """``slides`` with a ``title`` and its formats; what a slide does not say is as on the others."""
    from pptx import Presentation

    made = Presentation()
    if deck.get("portrait"):
        made.slide_width, made.slide_height = made.slide_height, made.slide_width
    for slide in deck.get("slides", [{}]):
        _slide(made, slide)
    if "number_color" in deck:
        _number_color(made, deck["number_color"])
    made.save(path)


def _slide(deck: Any, formats: dict[str, Any]) -> None:
    from pptx.dml.color import RGBColor

    slide = deck.slides.add_slide(deck.slide_layouts[5])
    title = slide.shapes.title
    title.left, title.top, title.width, title.height = 2 * CM, formats.get("top", CM), 9 * CM, CM
    _write(title.text_frame, formats)
    if "note" in formats:
        slide.notes_slide.notes_text_frame.text = formats["note"]
    if "background" in formats:
        slide.background.fill.solid()
        slide.background.fill.fore_color.rgb = RGBColor.from_string(formats["background"])
    if "picture" in formats:
        slide.shapes.add_picture(_picture(), *formats["picture"])
    if "table" in formats:
        words, top = formats["table"]
        shape = slide.shapes.add_table(1, 1, CM, top, 4 * CM, CM)
        shape.table.cell(0, 0).text = words
    if "transition" in formats:
        slide.element.append(
            _element(f"<p:transition {{ns}}><p:{formats['transition']}/></p:transition>")
        )


def _write(frame: Any, formats: dict[str, Any]) -> None:
    from pptx.dml.color import RGBColor
    from pptx.enum.text import PP_ALIGN
    from pptx.util import Pt

    frame.text = formats.get("title", "One")
    paragraph = frame.paragraphs[0]
    font = paragraph.runs[0].font
    for name in ("bold", "italic", "underline", "name"):
        if name in formats:
            setattr(font, name, formats[name])
    if "size" in formats:
        font.size = Pt(formats["size"])
    if "color" in formats:
        font.color.rgb = RGBColor.from_string(formats["color"])
    if formats.get("strike"):
        font._element.set("strike", "sngStrike")
    if formats.get("centered"):
        paragraph.alignment = PP_ALIGN.CENTER
    if "level" in formats:
        paragraph.level = formats["level"]
    if "bullet" in formats:
        bullet = f'<a:buChar {{ns}} char="{formats["bullet"]}"/>'
        paragraph._p.get_or_add_pPr().append(_element(bullet))


def _element(xml: str) -> Any:
    from pptx.oxml import parse_xml
    from pptx.oxml.ns import nsdecls

    return parse_xml(xml.format(ns=nsdecls("a", "p")))


def _number_color(deck: Any, color: str) -> None:
    """In the master: that of the numbers comes before another one."""
    from pptx.dml.color import RGBColor

    for shape, rgb in zip(deck.slide_master.placeholders, (color, "010101"), strict=False):
        run = shape.text_frame.paragraphs[0].add_run()
        run.text = "1"
        run.font.color.rgb = RGBColor.from_string(rgb)


def _picture() -> Any:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "PNG")
    return file


def deck(*slides: dict[str, Any], **formats: Any) -> dict[str, Any]:
    return {"slides": list(slides) or [{}], **formats}


def differ(right: dict[str, Any], wrong: dict[str, Any], **options: Any) -> Case:
    return alike("compare_pptx_files", "a.pptx", pptx, deck(right), deck(wrong), **options)


def moved(right: Any, wrong: Any, gold: Any, option: str, *, before: int = 0) -> Case:
    """With the shapes of a slide where a task wants them, whose gold is what it starts from."""
    decks = [deck(*[{}] * before, slide) for slide in (right, wrong)]
    options = {"examine_shape": False, option: True}
    gold_deck = deck(*[{}] * before, gold)
    return alike("compare_pptx_files", "a.pptx", pptx, *decks, gold=gold_deck, **options)


def placed(left: int, top: int, width: int = 4, height: int = 3) -> dict[str, Any]:
    return {"picture": (left * CM, top * CM, width * CM, height * CM)}


def setting(path: str, name: str, value: str) -> str:
    """As LibreOffice's ``registrymodifications.xcu`` has it."""
    return (
        '<oor:items xmlns:oor="http://openoffice.org/2001/registry">'
        f'<item oor:path="{path}"><prop oor:name="{name}" oor:op="fuse"><value>{value}</value>'
        "</prop></item></oor:items>"
    )


def set_to(metric: str, path: str, name: str, right: str, wrong: str, rules: Any = None) -> Case:
    values = (setting(path, name, value) for value in (right, wrong))
    return ruled(metric, "registrymodifications.xcu", text, *values, rules)


OFFICE = "/org.openoffice.Office"
WHOLE = {"picture": (0, 0, 9_144_000, 6_858_000)}
CASES = [
    alike("compare_pptx_files", "a.pptx", pptx, deck({}, {}), deck({})),
    differ({"title": "One"}, {"title": "Two"}),
    differ({"bold": True}, {"bold": False}),
    differ({"italic": True}, {"italic": False}),
    differ({"underline": True}, {"underline": False}),
    differ({"strike": True}, {}),
    differ({"color": "FF0000"}, {"color": "0000FF"}),
    differ({"size": 32}, {"size": 30}),
    differ({"name": "Liberation Serif"}, {"name": "Liberation Sans"}),
    differ({"centered": True}, {}),
    differ({"level": 1}, {}),
    differ({"bullet": "-"}, {}),
    differ({"note": "said"}, {"note": "unsaid"}),
    differ({"background": "0000FF"}, {"background": "FF0000"}),
    differ({"top": CM}, {"top": 3 * CM}),
    differ({"table": ("a", 5 * CM)}, {"table": ("a", 5 * CM), "bold": True}, examine_shape=False),
    # What an option leaves out does not count.
    alike(
        *("compare_pptx_files", "a.pptx", pptx, deck({"top": 3 * CM}), deck({"title": "Two"})),
        gold=deck({}),
        examine_shape=False,
    ),
    moved(
        *({"title": TITLE, "top": 12 * CM}, {"title": TITLE, "top": CM}, {"title": TITLE}),
        "examine_title_bottom_position",
    ),
    moved(
        *({"table": ("a", 12 * CM)}, {"table": ("a", 6 * CM)}, {"table": ("a", 5 * CM)}),
        "examine_table_bottom_position",
        before=2,
    ),
    moved(placed(14, 5), placed(9, 5), placed(8, 5), "examine_right_position", before=1),
    moved(placed(3, 2), placed(3, 9), placed(3, 8), "examine_top_position", before=1),
    moved(placed(3, 2), placed(3, 2, 5), placed(3, 2), "examine_shape_for_shift_size"),
    moved(placed(3, 2), placed(3, 2, 5), placed(3, 2), "examine_image_size"),
    moved(placed(3, 2), placed(3, 2, 4, 5), placed(9, 2), "examine_modify_height"),
    alike(
        *("check_image_stretch_and_center", "a.pptx", pptx),
        *(deck(WHOLE), deck(placed(1, 1))),
        gold=deck(placed(3, 3)),
    ),
    ruled("check_slide_orientation_Portrait", "a.pptx", pptx, deck(portrait=True), deck()),
    ruled(
        *("check_transition", "a.pptx", pptx),
        *(deck({"transition": kind}) for kind in ("dissolve", "fade")),
        {"slide_idx": 0, "transition_type": "dissolve"},
    ),
    ruled(
        *("check_page_number_colors", "a.pptx", pptx),
        *(deck(number_color=color) for color in ("FF0000", "00FF00")),
        {"color": "red"},
    ),
    ruled(
        *("check_strikethrough", "a.pptx", pptx, deck({"strike": True}), deck()),
        {"slide_index_s": [0], "shape_index_s": [0], "paragraph_index_s": [0]},
    ),
    set_to(
        *("check_presenter_console_disable", f"{OFFICE}.Impress/Misc/Start"),
        *("EnablePresenterScreen", "false", "true"),
    ),
    set_to(
        *("check_auto_saving_time", f"{OFFICE}.Common/Save/Document"),
        *("AutoSaveTimeIntervall", "3", "10", {"minutes": 3}),
    ),
    set_to(
        *("find_default_font", f"{OFFICE}.Writer/DefaultFont"),
        *("Standard", "Liberation Serif", "Liberation Sans", {"font_name": "Liberation Serif"}),
    ),
    set_to(
        *("check_libre_locale", "/org.openoffice.Setup/L10N", "ooSetupSystemLocale"),
        *("is-IS", "en-US", {"locale_set": ["is*"]}),
    ),
]
