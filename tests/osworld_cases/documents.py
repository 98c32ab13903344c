"""LibreOffice Writer: documents of Word, and one of OpenDocument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.osworld_cases.case import Case, File, Gold, alike, ruled

Words = str | dict[str, Any]


def docx(path: Path, blocks: list[Words]) -> None:
    """Paragraphs; a dict has a ``text`` with its formats, a ``table`` or a ``footer``."""
    import docx as package

    document = package.Document()
    for block in blocks:
        formats = {"text": block} if isinstance(block, str) else dict(block)
        if "table" in formats:
            _table(document, formats)
        elif "footer" in formats:
            document.sections[0].footer.paragraphs[0].text = formats["footer"]
        else:
            _paragraph(document, formats)
    document.save(path)


def _table(document: Any, formats: dict[str, Any]) -> None:
    from docx.shared import RGBColor

    rows = formats["table"]
    table = document.add_table(len(rows), len(rows[0]))
    for row, made in zip(rows, table.rows, strict=True):
        for words, cell in zip(row, made.cells, strict=True):
            run = cell.paragraphs[0].add_run(words)
            if "colors" in formats:
                run.font.color.rgb = RGBColor(*formats["colors"](words))


def _paragraph(document: Any, formats: dict[str, Any]) -> None:
    from docx.enum.text import WD_BREAK, WD_COLOR_INDEX, WD_PARAGRAPH_ALIGNMENT, WD_TAB_ALIGNMENT
    from docx.shared import Cm, Pt

    paragraph = document.add_paragraph()
    run = paragraph.add_run(formats.get("text", ""))
    for name in ("italic", "strike", "subscript", "name"):
        if name in formats:
            setattr(run.font, name, formats[name])
    if "size" in formats:
        run.font.size = Pt(formats["size"])
    if formats.get("centered"):
        paragraph.alignment = WD_PARAGRAPH_ALIGNMENT.CENTER
    if formats.get("highlighted"):
        run.font.highlight_color = WD_COLOR_INDEX.YELLOW
    if "spacing" in formats:
        paragraph.paragraph_format.line_spacing = formats["spacing"]
    if "tab_cm" in formats:
        stops = paragraph.paragraph_format.tab_stops
        stops.add_tab_stop(Cm(formats["tab_cm"]), WD_TAB_ALIGNMENT.RIGHT)
    if formats.get("page_break"):
        run.add_break(WD_BREAK.PAGE)
    if "picture" in formats:
        run.add_picture(_picture(formats["picture"]))


def _picture(color: str) -> Any:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "PNG")
    return file


def odt(path: Path, content: tuple[str, str]) -> None:
    """A word, and its colour behind."""
    from odf.opendocument import OpenDocumentText
    from odf.style import Style, TextProperties
    from odf.text import P, Span

    words, color = content
    document = OpenDocumentText()
    style = Style(name="T1", family="text")
    style.addElement(TextProperties(backgroundcolor=color))
    document.automaticstyles.addElement(style)
    paragraph = P()
    paragraph.addElement(Span(stylename=style, text=words))
    document.text.addElement(paragraph)
    document.save(str(path))


def by_first_letter(words: str) -> tuple[int, int, int]:
    return (255, 0, 0) if words[0] in "aeiou" else (0, 0, 255)


def all_blue(_: str) -> tuple[int, int, int]:
    return (0, 0, 255)


def said(first: str = "one", **formats: Any) -> list[Words]:
    return [{"text": first, **formats}, "two"]


TABS = {"tab_cm": 12}
TRAINS: list[Words] = ["06:00:00,K1,S1,1", "06:10:00,K2,S1,1", "06:20:00,K2,S2,1"]
CASES = [
    alike("compare_docx_files", "a.docx", docx, ["one", "two"], ["one", "2"]),
    alike(
        *("compare_docx_files", "a.docx", docx, ["ONE", "two"], ["one", " two"]),
        gold=["one", "two"],
        ignore_blanks=False,
        ignore_case=True,
    ),
    alike(
        *("compare_docx_files", "a.docx", docx, ["two", "", "one"], ["two", "", "two"]),
        gold=["one", "two"],
        ignore_order=True,
        delete_empty_lines=True,
    ),
    alike("compare_docx_files", "a.odt", odt, ("one", "#ffffff"), ("1", "#ffffff")),
    alike(
        *("compare_docx_files_and_ignore_new_lines", "a.docx", docx),
        *(["one", "", "two"], ["one", "", " two"]),
        gold=["one", "two"],
        ignore_blanks=False,
    ),
    alike("compare_docx_lines", "a.docx", docx, ["two", "one"], ["two", "1"], gold=["one", "two"]),
    alike("compare_init_lines", "a.docx", docx, ["one", "two"], ["1", "two"], gold=["one"]),
    alike(
        *("compare_docx_tables", "a.docx", docx),
        *([{"table": [["a", "b"]]}], [{"table": [["a", "c"]]}]),
    ),
    alike("compare_highlighted_text", "a.docx", docx, said(highlighted=True), said()),
    alike("compare_docx_images", "a.docx", docx, [{"picture": "red"}], [{"picture": "blue"}]),
    alike("compare_contains_image", "a.docx", docx, [{"picture": "red"}], [""]),
    alike("compare_line_spacing", "a.docx", docx, said(spacing=2.0), said(spacing=1.5)),
    alike("compare_subscript_contains", "a.docx", docx, said(subscript=True), said()),
    alike("compare_references", "a.docx", docx, ["References", "one"], ["References"]),
    alike(
        "check_italic_font_size_14", "a.docx", docx, *(said(italic=True, size=s) for s in (14, 12))
    ),
    alike(
        *("check_tabstops", "a.docx", docx),
        *([{"text": "a b c\td", **TABS}], [{"text": "a b\tc d", **TABS}]),
        word_number_split_by_tabstop=3,
        index=0,
    ),
    alike(
        *("evaluate_strike_through_last_paragraph", "a.docx", docx),
        *(["one", {"text": "two", "strike": True}], [{"text": "one", "strike": True}, "two"]),
    ),
    alike(
        *("evaluate_colored_words_in_tables", "a.docx", docx),
        *([{"table": [["and", "big"]], "colors": c}] for c in (by_first_letter, all_blue)),
    ),
    alike("check_highlighted_words", "a.odt", odt, ("one", "#ffffff"), ("one", "#ffff00")),
    ruled(
        *("compare_font_names", "a.docx", docx),
        *([{"text": "one", "name": name}] for name in ("Liberation Serif", "Liberation Sans")),
        {"font_name": "Liberation Serif"},
    ),
    ruled(
        *("contains_page_break", "a.docx", docx, said(page_break=True), said()),
        {"page_break_count": 1},
    ),
    Case(
        metric="compare_unique_train_records",
        files=(File(path="a.docx", make=docx, right=TRAINS[:2], wrong=TRAINS[1:]),),
        golds=(
            Gold(name="gold.docx", make=docx, content=TRAINS[:2]),
            Gold(name="start.docx", make=docx, content=TRAINS),
        ),
        gives=True,
    ),
    alike("check_no_duplicates", "a.docx", docx, TRAINS, TRAINS[:1], gold=TRAINS[:2]),
    ruled("is_first_line_centered", "a.docx", docx, said(centered=True), said()),
    ruled("has_page_numbers_in_footers", "a.docx", docx, [{"footer": "1"}], [{"footer": "one"}]),
    ruled(
        "evaluate_spacing",
        "a.docx",
        docx,
        *(
            [{"text": "p", "spacing": spacing} for spacing in spacings]
            for spacings in ((1.0, 2.0, 1.5), (1.0, 1.5, 2.0))
        ),
    ),
    ruled("evaluate_conversion", "a.docx", docx, ["one"], ["ONE"]),
]
