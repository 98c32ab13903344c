"""OSWorld's metrics on files made here: what each says of the right result and of a near miss.

Run by the interpreter that has ``desktop-env``: ``python osworld_metric_cases.py EVALUATOR FOLDER``
prints ``{metric: [score of the right one, score of the near miss]}``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

Content = Any


def text(path: Path, content: str) -> None:
    path.write_text(content)


def xlsx(path: Path, cells: list[list[Any]]) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    for row in cells:
        book.active.append(row)
    book.save(path)


def docx(path: Path, paragraphs: list[str]) -> None:
    import docx as package
    from docx.enum.text import WD_BREAK, WD_PARAGRAPH_ALIGNMENT

    document = package.Document()
    for words in paragraphs:
        added = document.add_paragraph(words.strip("|^"))
        if words.startswith("|"):
            added.alignment = WD_PARAGRAPH_ALIGNMENT.CENTER
        if words.endswith("^"):
            added.add_run().add_break(WD_BREAK.PAGE)
    document.save(path)


def pptx(path: Path, titles: list[str]) -> None:
    from pptx import Presentation

    deck = Presentation()
    for title in titles:
        deck.slides.add_slide(deck.slide_layouts[5]).shapes.title.text = title
    deck.save(path)


def pdf(path: Path, pages: list[str]) -> None:
    import pymupdf

    document = pymupdf.open()
    for words in pages:
        document.new_page().insert_text((72, 72), words)
    document.save(path)


def png(path: Path, shape: tuple[int, int, int]) -> None:
    """A gradient of a width, a height and a brightness."""
    from PIL import Image

    width, height, top = shape
    Image.linear_gradient("L").resize((width, height)).point(lambda v: v * top // 255).convert(
        "RGB"
    ).save(path)


def archive(path: Path, files: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)


Maker = Callable[[Path, Any], None]
# metric -> (file name, how it is made, the right content, the near miss, expected): expected is a rule,
# or None for a file with the right content.
CASES: dict[str, tuple[str, Maker, Content, Content, dict[str, Any] | None]] = {
    "compare_text_file": ("a.txt", text, "one\ntwo\n", "one\n2\n", None),
    "file_contains": ("a.txt", text, "x y", "x", {"expected": ["x", "y"]}),
    "check_csv": ("a.csv", text, "n,v\na,1\n", "n,v\na,2\n", {"expect": [{"n": "a", "v": "1"}]}),
    "check_list": ("a.txt", text, "alpha\n", "beta\n", {"expect": ["^al"], "unexpect": ["^be"]}),
    "compare_csv": ("a.csv", text, "a,b\n1,2\n", "a,b\n1,3\n", None),
    "check_json": (
        *("a.json", text, '{"k": {"v": 1}}', '{"k": {"v": 2}}'),
        {"expect": [{"key": ["k", "v"], "method": "eq", "ref": 1}]},
    ),
    "check_json_settings": (
        *("settings.json", text, '{"a": 1, "b": 2}', '{"a": 2}'),
        {"expected": {"a": 1}},
    ),
    "compare_config": ("a.cfg", text, "k=1", "k=2", {"expected": "k=1"}),
    "check_thunderbird_prefs": (
        *("prefs.js", text, 'user_pref("a.b", true);\n', 'user_pref("a.b", false);\n'),
        {"expect": {"a.b": {"method": "eq", "ref": True}}},
    ),
    "compare_docx_files": ("a.docx", docx, ["one", "two"], ["one", "2"], None),
    "compare_line_spacing": ("a.docx", docx, ["one"], ["two"], None),
    "is_first_line_centered": ("a.docx", docx, ["|one", "two"], ["one", "|two"], {}),
    "contains_page_break": ("a.docx", docx, ["one^"], ["one"], {"page_break_count": 1}),
    "compare_pptx_files": ("a.pptx", pptx, ["One", "Two"], ["One", "2"], None),
    "check_pdf_pages": ("a.pdf", pdf, ["1", "2"], ["1"], {"relation": "eq", "ref_value": 2}),
    "check_image_size": ("a.png", png, (60, 40, 255), (61, 40, 255), {"width": 60, "height": 40}),
    "check_structure_sim": ("a.png", png, (64, 64, 255), (64, 64, 20), None),
    "compare_zip_files": ("a.zip", archive, {"f": "1"}, {"f": "2"}, None),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "compare_table": {"rules": [{"type": "sheet_data", "sheet_idx0": 0, "sheet_idx1": "EI0"}]},
}
CASES["compare_table"] = ("a.xlsx", xlsx, [["n"], [1], [2]], [["n"], [1], [3]], None)
# On what a command printed.
OUTPUTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "exact_match": ("yes", "no", {"expected": "yes"}),
    "match_in_list": ("b", "c", {"expected": ["a", "b"]}),
    "check_include_exclude": ("on", "on off", {"include": ["on"], "exclude": ["off"]}),
    "is_extension_installed": ("x.y\n", "x\n", {"type": "contain", "expected": "x.y"}),
    "check_direct_json_object": ('{"k": "v"}', '{"k": "w"}', {"expected": {"k": "v"}}),
}
METRICS = sorted([*CASES, *OUTPUTS])


def main(evaluator_path: Path, folder: Path) -> dict[str, list[Any]]:
    spec = importlib.util.spec_from_file_location("evaluator", evaluator_path)
    assert spec is not None
    assert spec.loader is not None
    evaluator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evaluator)
    scores: dict[str, list[Any]] = {}
    for metric, (name, make, right, wrong, rules) in CASES.items():
        place = folder / metric
        for sub in ("gold", "cache"):
            (place / sub).mkdir(parents=True, exist_ok=True)
        make(place / "cache" / f"gold-{name}", right)
        gold = {"type": "cloud_file", "path": "http://nowhere/", "dest": f"gold-{name}"}
        expected = gold if rules is None else {"type": "rule", "rules": rules} if rules else None
        for content in (right, wrong):
            make(place / name, content)
            scores.setdefault(metric, []).append(
                _score(
                    evaluator,
                    metric,
                    place,
                    {"type": "vm_file", "path": name, "dest": name},
                    expected,
                )
            )
    for metric, (good, bad, rules) in OUTPUTS.items():
        for output in (good, bad):
            result = {"type": "rule", "rules": output}
            scores.setdefault(metric, []).append(
                _score(evaluator, metric, folder, result, {"type": "rule", "rules": rules})
            )
    return scores


def _score(evaluator: Any, metric: str, place: Path, result: Any, expected: Any) -> Any:
    read = lambda path: (place / path).read_bytes()  # noqa: E731
    env = SimpleNamespace(
        cache_dir=str(place / "cache"),
        controller=SimpleNamespace(get_file=read),
        vm_ip="",
        server_port=0,
    )
    published = {"func": metric, "result": result, "expected": expected}
    published |= {"options": OPTIONS.get(metric, {})}
    try:
        return float(evaluator.evaluate(published, env))
    except Exception as error:  # which one it was is what the test shows
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer.write(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
    answer.close()
