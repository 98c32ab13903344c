"""Metrics that say how similar something is: a near miss earns a part."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

from tests.osworld_cases.case import Case, File, Gold, alike, printed, rule, ruled, text
from tests.osworld_cases.documents import docx
from tests.osworld_cases.pictures import picture
from tests.osworld_cases.slides import deck, pptx
from tests.osworld_cases.texts import archive

RATE = 22050
PART = 0.9
"""More is no near miss."""


def tone(path: Path, hertz: float) -> None:
    """Half a second of sound."""
    import numpy as np

    times = np.arange(RATE // 2) / RATE
    samples = (12000 * np.sin(2 * np.pi * hertz * times)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())


def pdf(path: Path, pages: list[Any]) -> None:
    """Words, or the file of a picture."""
    import pymupdf

    document = pymupdf.open()
    for content in pages:
        page = document.new_page()
        if isinstance(content, str):
            page.insert_text((72, 72), content)
        else:
            image = path.with_name("picture.png")
            picture(image, content)
            page.insert_image(pymupdf.Rect(72, 72, 200, 168), filename=str(image))
            image.unlink()
    document.save(path)


def pdfs(path: Path, files: dict[str, str]) -> None:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for name, words in files.items():
            page = path.with_name(name)
            pdf(page, [words])
            archive.write(page, name)
            page.unlink()


def film(path: Path, angles: tuple[int, ...]) -> None:
    """A frame for each."""
    import cv2
    import numpy as np

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 5, (64, 48))
    for angle in angles:
        writer.write(
            np.roll(np.tile(np.arange(64, dtype=np.uint8), (48, 3, 1)), angle, 2).reshape(48, 64, 3)
        )
    writer.release()


def slide_with(path: Path, content: dict[str, Any]) -> None:
    """A deck whose first slide has a sound, and a picture as its background."""
    from lxml import etree
    from pptx import Presentation
    from pptx.opc.package import Part
    from pptx.opc.packuri import PackURI

    deck = Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/"
    folder = path.parent
    if "sound" in content:
        tone(folder / "sound.wav", content["sound"])
        blob = (folder / "sound.wav").read_bytes()
        part = Part(PackURI("/ppt/media/sound.wav"), "audio/wav", deck.part.package, blob)
        slide.part.relate_to(part, kind + "audio")
    if "background" in content:
        picture(folder / "back.png", content["background"])
        part, relation = slide.part.get_or_add_image_part(str(folder / "back.png"))
        spaces = (
            'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" '
            'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" '
            f'xmlns:r="{kind[:-1]}"'
        )
        filled = f'<a:blipFill><a:blip r:embed="{relation}"/></a:blipFill>'
        xml = f"<p:bg {spaces}><p:bgPr>{filled}</p:bgPr></p:bg>"
        slide.element.cSld.insert(0, etree.fromstring(xml))
    for name in ("sound.wav", "back.png"):
        (folder / name).unlink(missing_ok=True)
    deck.save(path)


HOME = [
    File(path="same.png", make=picture, right={}, wrong={}),
    File(path="same.wav", make=tone, right=440, wrong=440),
    File(
        path="deck.pptx",
        make=slide_with,
        right={"sound": 440, "background": {}},
        wrong={"background": {"negative": True}},
    ),
]


def in_slide(metric: str, what: str, name: str) -> Case:
    """Compared with a file of the desktop, as some tasks do."""
    getter = {"type": what, "ppt_file_path": "deck.pptx", "slide_index": 0, "dest": f"found-{name}"}
    beside = {"type": "vm_file", "path": name, "dest": f"expected-{name}"}
    return Case(metric=metric, result=getter, expected=beside)


LINES = "one\ntwo\nthree\nfour\n"
CASES = [
    alike("diff_text_file", "a.tex", text, LINES, "one\n2\nthree\nfour\n", below=PART),
    alike(
        *("compare_docx_files", "a.docx", docx, ["one two"], ["one 2"]),
        content_only=True,
        below=PART,
    ),
    alike(
        *("compare_references", "a.docx", docx),
        *(["References", words] for words in ("Ann: On sheets, 1999", "Ann: On seats, 1999")),
        below=PART,
        reference_base_result=0.5,
    ),
    alike(
        *("check_tabstops", "a.docx", docx),
        *([{"text": "a\tb", "tab_cm": cm}] for cm in (12, 8)),
        below=PART,
    ),
    alike("compare_images", "a.png", picture, {}, {"mirror": True}, below=PART),
    in_slide("compare_images", "background_image_in_slide", "same.png"),
    in_slide("compare_audios", "audio_in_slide", "same.wav"),
    alike("compare_videos", "a.mp4", film, (1, 2, 3) * 4, (1, 2, 3) * 2),
    printed("fuzzy_match", "one two", "one 2", {"expected": "one two"}, below=PART),
    alike("compare_epub", "a.epub", archive, {"a.html": "<p>a"}, {"a.html": "<p>b"}, below=PART),
    alike("compare_audios", "a.wav", tone, 440, 1500, below=PART),
    alike("compare_pdfs", "a.pdf", pdf, ["one two"], ["one 2"], below=PART),
    ruled("check_pdf_pages", "a.pdf", pdf, ["1", "2"], ["1"], {"relation": "eq", "ref_value": 2}),
    Case(
        metric="is_gold_text_included_in_pdf",
        files=(File(path="a.pdf", make=pdf, right=["one two"], wrong=["one 2"]),),
        golds=(Gold(name="gold.json", make=text, content='{"a": "two"}'),),
    ),
    alike("compare_pdf_images", "a.pdf", pdf, [{}, {}], [{}, {"mirror": True}], below=PART),
    alike(
        *("compare_archive", "a.zip", pdfs, {"a.pdf": "one two"}, {"a.pdf": "one 2"}),
        file_type="pdf",
        below=PART,
    ),
    Case(
        metric="fuzzy_place_math",
        files=(
            File(path="a.docx", make=docx, right=["Oslo", "Rome", "Lima"], wrong=["Oslo", "Rome"]),
        ),
        expected=rule({"expected": ["Oslo", "Rome", "Lima"]}),
    ),
    Case(
        metric="evaluate_presentation_fill_to_rgb_distance",
        files=(
            File(
                path="a.pptx",
                make=pptx,
                right=deck({"background": "0000FF"}, {"background": "0000FF"}),
                wrong=deck({"background": "0000FF"}, {"background": "FF0000"}),
            ),
        ),
        expected=rule({"rgb": [0, 0, 255], "original_rgb": [255, 255, 255]}),
        below=PART,
    ),
]
