"""Settings of Chrome, Thunderbird, VLC, GIMP and VS Code, as their files have them."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from tests.osworld_cases.case import Case, File, got, ruled, text


def as_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def history(path: Path, urls: list[str]) -> None:
    connection = sqlite3.connect(path)
    connection.execute("create table urls (url, title, last_visit_time)")
    connection.executemany("insert into urls values (?, 't', 1)", [(url,) for url in urls])
    connection.commit()
    connection.close()


def cookies(path: Path, domains: list[str]) -> None:
    connection = sqlite3.connect(path)
    connection.execute("create table cookies (id, host)")
    connection.executemany("insert into cookies values (1, ?)", [(domain,) for domain in domains])
    connection.commit()
    connection.close()


def preferences(**values: Any) -> dict[str, Any]:
    """Chrome's, with the right values where no other is given."""
    extension = {"path": "/home/user/mine", "manifest": {"name": "Mine"}}
    return {
        "enable_do_not_track": True,
        "safebrowsing": {"enhanced": True, "enabled": True},
        "session": {"restore_on_startup": 5},
        "profile": {"name": "Ann", "default_content_setting_values": {"cookies": 4}},
        "webkit": {"webprefs": {"default_font_size": 20}},
        "default_search_provider_data": {"template_url_data": {"short_name": "Bing"}},
        "extensions": {"settings": {"x": extension}},
        **values,
    }


WRONG = preferences(
    enable_do_not_track=False,
    safebrowsing={"enhanced": False},
    session={"restore_on_startup": 4},
    profile={"name": "Bob"},
    webkit={"webprefs": {"default_font_size": 16}},
    default_search_provider_data={"template_url_data": {"short_name": "Google"}},
    extensions={"settings": {}},
)


def bookmarks(*folders: str) -> dict[str, Any]:
    children = [{"name": name, "type": "folder", "children": []} for name in folders]
    page = {"name": "p", "type": "url", "url": f"https://{folders[0]}.org/"}
    return {"roots": {"bookmark_bar": {"children": [*children, page]}}}


def local_state(language: str, *names: str) -> dict[str, Any]:
    """With experiments."""
    return {
        "intl": {"app_locale": language},
        "browser": {"enabled_labs_experiments": [f"{name}@1" for name in names]},
    }


VLCRC = """
input-record-path=/home/user/{0}
qt-bgcone={1}
qt-max-volume={2}
qt-minimal-view={3}
qt-slider-colours={4}
global-key-play-pause={5}
one-instance-when-started-from-file={1}
"""
FILTER = """version="9"
name="{0}"
enabled="yes"
type="17"
action="Move to folder"
actionValue="mailbox://nobody@Local%20Folders/Promotions"
condition="AND (subject,contains,discount)"
"""
PREFS = 'user_pref("mail.a", {0});\nuser_pref("mail.b", false);\n'
DESKTOP = "[Default Applications]\nvideo/mp4={0}\nvideo/ogg={0}\n"
PLAYER = "[Desktop Entry]\nType=Application\nName=Player\nExec=env\n"
PROFILE = ".config/google-chrome/Default"
KEYS = {"key": "ctrl+j", "command": "focus", "when": "terminalFocus"}
HOME = [  # where the getters look
    File(path=f"{PROFILE}/Preferences", make=as_json, right=preferences(), wrong=WRONG),
    File(
        path=f"{PROFILE}/Bookmarks", make=as_json, right=bookmarks("a", "b"), wrong=bookmarks("c")
    ),
    File(
        path=f"{PROFILE}/History",
        make=history,
        right=["http://b"],
        wrong=["http://b", "http://a.x"],
    ),
    File(path=f"{PROFILE}/Cookies", make=cookies, right=["b.com"], wrong=["b.com", ".a.com"]),
    File(path="Desktop/a.desktop", make=text, right="Name=Mail\n", wrong="Name=Map\n"),
    File(
        path=".config/google-chrome/Local State",
        make=as_json,
        right=local_state("is", "one", "two"),
        wrong=local_state("en-US", "one"),
    ),
    File(
        path=".config/vlc/vlcrc",
        make=text,
        right=VLCRC.format("Desktop", 0, 200, 1, "1;2;3;4;5;6", "Ctrl+p"),
        wrong=VLCRC.format("Videos", 1, 125, 0, "1;2;3;4;5;200", ""),
    ),
    File(
        path=".config/GIMP/2.10/gimprc",
        make=text,
        right='# GIMP\n(theme "Light")\n',
        wrong='# GIMP\n(theme "Dark")\n',
    ),
    File(
        path=".config/mimeapps.list",
        make=text,
        right=DESKTOP.format("vlc.desktop"),
        wrong=DESKTOP.format("totem.desktop"),
    ),
    *(
        File(
            path=f".local/share/applications/{name}.desktop", make=text, right=PLAYER, wrong=PLAYER
        )
        for name in ("vlc", "totem")
    ),
    File(path="sorted/a.jpg", make=text, right="", wrong=""),
    File(path="sorted/b.jpg", make=text, right="", wrong=None),
    File(path="OpenProject.txt", make=text, right="project", wrong="other"),
]


def matched(getter: str, expected: Any) -> Case:
    return got("exact_match", {"type": getter}, {"expected": expected})


def in_vlcrc(metric: str, rules: dict[str, Any]) -> Case:
    return got(metric, {"type": "vlc_config", "dest": "vlcrc"}, rules)


CASES = [
    matched("enable_do_not_track", "true"),
    matched("enable_enhanced_safety_browsing", "true"),
    matched("enable_safe_browsing", "true"),
    matched("new_startup_page", "true"),
    matched("data_delete_automacally", "true"),
    matched("profile_name", "Ann"),
    matched("chrome_language", "is"),
    got(
        "match_in_list", {"type": "default_search_engine"}, {"expected": ["Bing", "Microsoft Bing"]}
    ),
    got("check_font_size", {"type": "chrome_font_size"}, {"type": "range", "min": 16, "max": 99}),
    got("is_in_list", {"type": "find_unpacked_extension_path"}, {"expected": "/home/user/mine"}),
    got(
        *("is_expected_installed_extensions", {"type": "find_installed_extension_name"}),
        {"expected": ["Mine"]},
    ),
    got(
        *("is_expected_bookmarks", {"type": "bookmarks"}),
        {"type": "bookmark_bar_folders_names", "names": ["b", "a"]},
    ),
    got(
        *("is_expected_bookmarks", {"type": "bookmarks"}),
        {"type": "bookmark_bar_websites_urls", "urls": ["https://a.org/"]},
    ),
    got(
        *("check_history_deleted", {"type": "history", "dest": "history.sqlite"}),
        {"type": "keywords", "keywords": ["a.x"]},
    ),
    got(
        *("check_enabled_experiments", {"type": "enabled_experiments"}),
        {"type": "names", "names": ["one", "two"]},
    ),
    got(
        *("is_cookie_deleted", {"type": "cookie_data", "dest": "cookies.sqlite"}),
        {"type": "domains", "domains": [".a.com"]},
    ),
    got(
        *("is_shortcut_on_desktop", {"type": "shortcuts_on_desktop"}),
        {"type": "name", "name": "Mail"},
    ),
    in_vlcrc("is_vlc_recordings_folder", {"recording_file_path": "/home/user/Desktop"}),
    in_vlcrc("check_qt_bgcone", {"expected_qt_bgcone": 0}),
    in_vlcrc("check_qt_max_volume", {"expected_qt_max_volume": 200}),
    in_vlcrc("check_qt_minimal_view", {"expected_qt_minimal_view": 1}),
    in_vlcrc("check_qt_slider_colours", {"type": "blackish"}),
    in_vlcrc("check_global_key_play_pause", {"expected_global_key_play_pause": 1}),
    in_vlcrc(
        "check_one_instance_when_started_from_file",
        {"expected_one_instance_when_started_from_file": 0},
    ),
    got("check_include_exclude", {"type": "default_video_player"}, {"include": ["vlc.desktop"]}),
    got(
        "check_config_status",
        {"type": "gimp_config_file", "file_name": "gimprc", "dest": "gimprc"},
        {"type:": "key-value", "key": "theme", "value": '"Light"'},
    ),
    got(
        "compare_config",
        {
            "type": "vscode_config",
            "vscode_extension_command": "OpenProject",
            "path": "OpenProject.txt",
            "dest": "OpenProject.txt",
        },
        {"expected": "project"},
    ),
    got(
        *("check_moved_jpgs", {"type": "list_directory", "path": "sorted"}),
        {"expected": ["a.jpg", "b.jpg"]},
    ),
    ruled(
        *("check_thunderbird_prefs", "prefs.js", text, PREFS.format("true"), PREFS.format("false")),
        {
            "expect": {"mail.a": {"method": "eq", "ref": True}},
            "unexpect": {"mail.b": {"method": "eq", "ref": True}},
        },
    ),
    ruled(
        *(
            "check_thunderbird_filter",
            "msgFilterRules.dat",
            text,
            FILTER.format("Offers"),
            "name=\n",
        ),
        {"expect": [{"enabled": "yes", "condition": ["AND (subject,contains,discount)"]}]},
    ),
    ruled(
        *("check_json_settings", "settings.json", text, '{"a": 50, "b": 2}', '{"a": 5}'),
        {"expected": {"a": 50}},
    ),
    ruled(
        *("check_json_keybindings", "keybindings.json", text),
        *("// keys\n" + json.dumps([{**KEYS, "key": key}]) for key in ("ctrl+j", "ctrl+k")),
        {"expected": KEYS},
    ),
]
