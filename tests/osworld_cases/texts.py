"""Texts, tables as text, archives, and what commands print."""

from __future__ import annotations

import sqlite3
import zipfile
from pathlib import Path

from tests.osworld_cases.case import Case, File, Gold, alike, printed, rule, ruled, text


def archive(path: Path, files: dict[str, str]) -> None:
    with zipfile.ZipFile(path, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)


def database(path: Path, values: list[int]) -> None:
    connection = sqlite3.connect(path)
    connection.execute("create table found (value integer)")
    connection.executemany("insert into found values (?)", [(value,) for value in values])
    connection.commit()
    connection.close()


def tags(path: Path, title: str) -> None:
    from mutagen.easyid3 import EasyID3

    made = EasyID3()
    made["title"] = title
    made.save(path)


SUITE = """
def check():
    import area_of
    return area_of.square(3) == 9
"""
CLOCK = "10:00:01 load 3\n10:00:02 load 4\nend\n"
CITY = {"expected": {"a": ["Oslo", "Bergen"]}, "expect_in_result": True}
ACCOUNT = {"url": "imap://mail", "user": "ann"}
CASES = [
    alike("compare_text_file", "a.txt", text, "one\ntwo\n", "one\n2\n"),
    alike(
        *("compare_text_file", "a.txt", text, "One  two\n", "One  three\n"),
        gold="one\ntwo",
        ignore_blanks=True,
        ignore_case=True,
    ),
    alike("compare_result_files", "a.txt", text, "Python 3", "Perl 4", gold="3"),
    alike("compare_csv", "a.csv", text, "a,b\n1,2\n", "a,b\n1,3\n"),
    alike("compare_csv", "a.csv", text, " A,b\n", "A,c\n", gold="a,B", strict=False, ignore_case=1),
    alike("compare_zip_files", "a.zip", archive, {"f": "1"}, {"f": "2"}),
    alike("compare_archive", "a.zip", archive, {"f": "1"}, {"f": "2"}, file_type="text"),
    alike("compare_htmls", "a.html", text, "<p>one</p>", "<p>two</p>"),
    alike("compare_python_pure_text", "a.py", text, "#!/x\na = 1\n\n", "a = 2\n", gold="a = 1\n"),
    alike(
        "is_included_all_json_objects",
        "a.json",
        text,
        '{"a": 1}',
        '{"a": 2}',
        gold='{"a": 1, "b": 2}',
    ),
    ruled(
        *("check_html_background_image", "a.html", text),
        *(f"<style>b {{ background-image: url('{name}') }}</style>" for name in ("a.png", "b.png")),
        {"value": "a.png"},
    ),
    ruled(
        *("check_mp3_meta", "a.mp3", tags, "One", "Two"),
        {"title": {"method": "eq", "ref": "One"}},
    ),
    ruled("file_contains", "a.txt", text, "CPU %user %idle", "CPU %user", {"expected": ["%idle"]}),
    ruled("check_line_number", "a.txt", text, CLOCK, CLOCK + CLOCK, {"expected": "2"}),
    ruled(
        *("check_list", "a.txt", text, "alpha\n", "alpha\nbeta\n"),
        {"expect": ["^al"], "unexpect": ["^be"]},
    ),
    ruled(
        *("check_csv", "a.csv", text, "url,user\nimap://mail,ann\n", "url,user\nimap://mail,bob\n"),
        {"expect": [ACCOUNT], "unexpect": [{"user": "eve"}]},
    ),
    ruled(
        *("check_json", "a.json", text, '{"k": {"v": "smart"}}', '{"k": {"v": "all"}}'),
        {"expect": [{"key": ["k", "v"], "method": "re", "ref": r"\bsmart\b"}]},
    ),
    ruled(
        *("run_sqlite3", "a.sqlite", database, [1, 2], [1]),
        {"sql": "select count(*) > 1 from found"},
    ),
    Case(  # an agent that edits one module, and a suite of the task that imports it
        metric="check_python_file_by_test_suite",
        files=(
            File(
                path="area_of.py",
                make=text,
                right="def square(a):\n    return a * a\n",
                wrong="def square(a):\n    return a + a\n",
            ),
            File(path="notes.py", make=text, right="", wrong=""),
        ),
        golds=(Gold(name="suite.py", make=text, content=SUITE),),
        options={"test_function_name": "check"},
    ),
    printed("exact_match", "yes", "no", {"expected": "yes"}),
    printed("compare_answer", "yes", "no", {"expected": "yes"}),
    printed("literal_match", "yes", "no", "yes"),
    printed("match_in_list", "b", "c", {"expected": ["a", "b"]}),
    printed("is_in_list", "a, b", "a", {"expected": "b"}),
    printed("check_include_exclude", "on", "on off", {"include": ["on"], "exclude": ["off"]}),
    printed("is_extension_installed", "x.y\n", "x\n", {"type": "contain", "expected": "x.y"}),
    printed("is_extension_installed", "x\n", "x.y", {"type": "not_contain", "expected": "x.y"}),
    printed("check_direct_json_object", '{"k": "v"}', '{"k": "w"}', {"expected": {"k": "v"}}),
    printed("check_direct_json_object", "{'a': ['Oslo']}", "{'a': ['Rome']}", CITY),
    Case(
        metric="is_in_vm_clickboard",  # the command is what is expected, and the text the result
        result=rule({"expected": "/home/user/secret.docx"}),
        wrong_result=rule({"expected": "/home/user/public.docx"}),
        expected={
            "type": "vm_command_line",
            "command": "echo /home/user/secret.docx",
            "shell": "true",
        },
    ),
    Case(
        metric="exact_match",
        result={"type": "vm_command_error", "command": "echo bad >&2", "shell": True},
        wrong_result={"type": "vm_command_error", "command": "echo bad", "shell": True},
        expected=rule({"expected": "bad\n"}),
    ),
    printed("check_text_enlarged", "1.25\n", "1.0\n"),
    printed("check_gnome_favorite_apps", "['a.desktop']", "[]", {"expected": ["a.desktop"]}),
    printed(
        "is_utc_0",
        "\n\n\n   Time zone: Etc/UTC (UTC, +0000)\nNTP service: active\n",
        "\n\n\n   Time zone: Europe/Oslo (CET, +0100)\nNTP service: active\n",
    ),
]
