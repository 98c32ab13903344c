"""LibreOffice Calc: every kind of rule that ``compare_table`` has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.osworld_cases.case import Case, File, Gold, alike, got, ruled, text

Change = Callable[[Any], None]  # of the sheet, or of the book's first one


def xlsx(path: Path, content: tuple[list[list[Any]], Change]) -> None:
    """Cells, and what is then done to the sheet."""
    import openpyxl

    book = openpyxl.Workbook()
    for row in content[0]:
        book.active.append(row)
    content[1](book.active)
    book.save(path)


def as_it_is(_: Any) -> None:
    pass


CELLS: list[list[Any]] = [["name", "score"], ["Ann", 1], ["Bob", 2]]
OTHER: list[list[Any]] = [["name", "score"], ["Ann", 1], ["Bob", 3]]
BOTH = {"sheet_idx0": 0, "sheet_idx1": "EI0"}


def changed(rule: dict[str, Any], right: Change, wrong: Change = as_it_is) -> Case:
    """The gold is another file with the right one's content."""
    contents = (CELLS, right), (CELLS, wrong)
    return alike("compare_table", "a.xlsx", xlsx, *contents, rules=[{**BOTH, **rule}])


def checked(rule: dict[str, Any], right: Change, wrong: Change) -> Case:
    """By a rule alone."""
    contents = (CELLS, right), (CELLS, wrong)
    made = ruled("compare_table", "a.xlsx", xlsx, *contents)
    return Case(metric=made.metric, files=made.files, options={"rules": [{"sheet_idx": 0, **rule}]})


def chart(kind: str, title: str, *, horizontal: bool = False) -> Change:
    def add(sheet: Any) -> None:
        from openpyxl.chart import BarChart, LineChart, Reference

        made = {"bar": BarChart, "line": LineChart}[kind]()
        made.title = title
        if horizontal:
            made.type = "bar"
        made.add_data(Reference(sheet, min_col=2, min_row=2, max_row=3))
        made.set_categories(Reference(sheet, min_col=1, min_row=2, max_row=3))
        sheet.add_chart(made, "D2")

    return add


def pivot(function: str) -> Change:
    """The scores by name, added up in one way."""

    def add(sheet: Any) -> None:
        from openpyxl.pivot.cache import (
            CacheDefinition,
            CacheField,
            CacheSource,
            SharedItems,
            WorksheetSource,
        )
        from openpyxl.pivot.fields import Number, Text
        from openpyxl.pivot.record import Record, RecordList
        from openpyxl.pivot.table import (
            DataField,
            FieldItem,
            Location,
            PivotField,
            RowColField,
            TableDefinition,
        )

        source = CacheSource(
            type="worksheet", worksheetSource=WorksheetSource(ref="A1:B3", sheet=sheet.title)
        )
        names = CacheField(
            name="name", sharedItems=SharedItems(_fields=[Text(v="Ann"), Text(v="Bob")])
        )
        scores = CacheField(name="score", sharedItems=SharedItems())
        cache = CacheDefinition(cacheSource=source, cacheFields=[names, scores], id="rId1")
        cache.records = RecordList(r=[Record(_fields=[Text(v="Ann"), Number(v=1)])])
        made = TableDefinition(
            name="Pivot",
            cacheId=1,
            dataCaption="Values",
            location=Location(ref="E1:F4", firstHeaderRow=1, firstDataRow=1, firstDataCol=1),
        )
        items = [FieldItem(x=0), FieldItem(x=1)]
        made.pivotFields = [PivotField(axis="axisRow", items=items), PivotField(dataField=True)]
        made.rowFields = [RowColField(x=0)]
        made.dataFields = [DataField(name=f"{function} of score", fld=1, subtotal=function)]
        made.cache = cache
        sheet._pivots.append(made)

    return add


def filtered(value: str) -> Change:
    def add(sheet: Any) -> None:
        sheet.auto_filter.ref = "A1:B3"
        sheet.auto_filter.add_filter_column(0, [value])

    return add


def chosen_of(choices: str) -> Change:
    def add(sheet: Any) -> None:
        from openpyxl.worksheet.datavalidation import DataValidation

        made = DataValidation(type="list", formula1=f'"{choices}"')
        made.add("B2:B3")
        sheet.add_data_validation(made)

    return add


def formatted(fill: str, **font: Any) -> Change:
    """The first cell."""

    def add(sheet: Any) -> None:
        from openpyxl.styles import Font, PatternFill

        sheet["A1"].fill = PatternFill("solid", fgColor=fill)
        sheet["A1"].font = Font(**font)

    return add


def conditional(above: int) -> Change:
    def add(sheet: Any) -> None:
        from openpyxl.formatting.rule import CellIsRule
        from openpyxl.styles import PatternFill

        fill = PatternFill(bgColor="FFFF0000")
        found = CellIsRule(operator="greaterThan", formula=[str(above)], fill=fill)
        sheet.conditional_formatting.add("B2:B3", found)

    return add


def setting(what: str, value: Any) -> Change:
    """An attribute of the sheet, or of what it has."""

    def put(sheet: Any) -> None:
        *way, last = what.split(".")
        for name in way:
            sheet = getattr(sheet, name)
        setattr(sheet, last, value)

    return put


def hidden(dimension: str, key: Any) -> Change:
    def hide(sheet: Any) -> None:
        getattr(sheet, dimension)[key].hidden = True

    return hide


def data(right: list[list[Any]], wrong: list[list[Any]], rule: dict[str, Any]) -> Case:
    contents = (right, as_it_is), (wrong, as_it_is)
    gold = (CELLS, as_it_is)
    return alike("compare_table", "a.xlsx", xlsx, *contents, gold=gold, rules=[{**BOTH, **rule}])


def fuzzy(kind: str, right: str, wrong: str, **rule: Any) -> Case:
    rows = [[*CELLS[:2], [name, 2]] for name in (right, wrong)]
    ranges = [{"range": ["A2:A3"], "type": kind, **rule}]
    return data(*rows, {"type": "sheet_fuzzy", "rules": ranges})


SHOWN = "name,score\nAnn,1\nBob,2\n"
CHOICES = {
    "ranges": {"method": "spreadsheet_range", "ref": ["B2:B3", "B2:B1048576"]},
    "type": {"method": "eq", "ref": "list"},
    "formula1": {"method": "str_set_eq", "ref": ["Pass", "Fail"]},
}
STYLED = {
    "bgcolor": {"method": "eq", "ref": "FF0000FF"},
    "font_color": {"method": "eq", "ref": "FFFFFFFF"},
    "font_bold": {"method": "eq", "ref": True},
    "value": {"method": "eq", "ref": "name"},
}
LAST = {
    "type": "content_from_vm_file",
    "path": "last.xlsx",
    "file_type": "xlsx",
    "file_content": "last_row",
}
HOME = [File(path="last.xlsx", make=xlsx, right=(CELLS, as_it_is), wrong=(OTHER, as_it_is))]
CITIES = ["Oslo"] * 21
CASES = [
    data(CELLS, OTHER, {"type": "sheet_data"}),
    changed({"type": "sheet_name"}, setting("title", "Scores")),
    Case(  # as LibreOffice's conversion to CSV names the sheets
        metric="compare_table",
        files=(
            File(path="a.xlsx", make=xlsx, right=(CELLS, as_it_is), wrong=(CELLS, as_it_is)),
            File(path="a-Sheet.csv", make=text, right=SHOWN.upper(), wrong=SHOWN + "Cy,3\n"),
        ),
        golds=(
            Gold(name="gold.xlsx", make=xlsx, content=(CELLS, as_it_is)),
            Gold(name="gold-Sheet.csv", make=text, content=SHOWN),
        ),
        options={
            "rules": [
                {
                    "type": "sheet_print",
                    "sheet_idx0": "RNSheet",
                    "sheet_idx1": "ENSheet",
                    "ignore_case": True,
                }
            ]
        },
    ),
    fuzzy("exact_match", "+bob", "Ben", trim_leadings="+ ", ignore_case=True),
    fuzzy("fuzzy_match", "Bobb", "Eve", threshold=80),
    fuzzy("includes", "Mr. Bob", "Bo"),
    fuzzy("included_by", "Bo", "Bobby", normalization=[["x", "y"]], ignore_chars="()"),
    changed(
        {"type": "chart", "chart_props": ["type", "title"]}, chart("bar", "A"), chart("line", "A")
    ),
    changed({"type": "chart", "chart_props": ["title"]}, chart("bar", "A"), chart("bar", "B")),
    changed(
        {"type": "chart", "chart_props": ["type", "direction"]},
        *(chart("bar", "A", horizontal=flat) for flat in (True, False)),
    ),
    changed(
        {
            "type": "pivot_table",
            "pivot_props": ["col_fields", "filter", "row_fields", "data_fields"],
        },
        *(pivot(function) for function in ("sum", "count")),
    ),
    changed(
        {"type": "style", "props": ["bgcolor", "font_color"]},
        *(formatted(fill=fill, color="FF112233") for fill in ("FF0000FF", "FF00FF00")),
    ),
    changed({"type": "style", "props": ["bgcolor"]}, conditional(1), conditional(2)),
    changed({"type": "freeze"}, setting("freeze_panes", "B2"), setting("freeze_panes", "A2")),
    changed({"type": "row_props", "props": ["hidden"]}, hidden("row_dimensions", 2)),
    changed({"type": "col_props", "props": ["hidden"]}, hidden("column_dimensions", "B")),
    changed({"type": "filter"}, filtered("Ann"), filtered("Bob")),
    checked(
        {"type": "zoom", "method": "gt", "ref": 250},
        *(setting("sheet_view.zoomScale", scale) for scale in (260, 100)),
    ),
    checked(
        {"type": "data_validation", "dv_props": [CHOICES]},
        *(chosen_of(choices) for choices in ("Pass,Fail", "Pass,Held")),
    ),
    checked(
        {"type": "check_cell", "coordinate": "A1", "props": STYLED},
        *(formatted(fill="FF0000FF", color="FFFFFFFF", bold=bold) for bold in (True, False)),
    ),
    got("exact_match", LAST, {"expected": ["Bob", "2"]}),
    ruled(
        *("compare_conference_city_in_order", "a.xlsx", xlsx),
        *(
            ([["", "", "city"], *[["", "", city] for city in cities]], as_it_is)
            for cities in (["Oslo (N)"] * 21, ["Oslo"] * 20 + ["Rome"])
        ),
        {"expected": [*CITIES[1:], ["Bergen", "Oslo"]]},
    ),
]
