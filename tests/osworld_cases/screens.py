"""What is on the screen, and what programs say that run: stand-ins answer for them."""

from __future__ import annotations

from tests.osworld_cases.case import Case, File, got, text
from tests.osworld_cases.pictures import picture

TREE = """<desktop-frame xmlns:attr="https://accessibility.ubuntu.example.org/ns/attributes">
  <application name="Google Chrome">
    <entry name="Address and search bar">{0}</entry>
  </application>
  <application name="Impress"><document-frame name="{1}"/></application>
  <application name="Thunderbird"><page-tab-list attr:id="tabs"><page-tab name="{2}"/></page-tab-list>
  </application>
</desktop-frame>"""
PLAYING = (
    '<root><state>{0}</state><information><category name="meta"><info name="filename">{1}</info>'
    "</category></information></root>"
)
TERMINAL = "$ stty size\n43 132\n"
# Route of the guest -> what it answers on the right side, and on the wrong one.
ANSWERS = {
    "/accessibility": (
        TREE.format("scholar.org/citations?user=q", "Slides View", "About Profiles"),
        TREE.format("scholar.org/people", "Notes", "Inbox"),
    ),
    "/terminal": (TERMINAL, "$ stty size\n24 80\n"),
    "/port/8080/requests/status.xml": (
        PLAYING.format("playing", "film.mp4"),
        PLAYING.format("paused", "film.mp4"),
    ),
}
SCREEN = {"width": 320, "height": 200}
WINDOWS = (SCREEN, {"width": 300, "height": 180})  # of VLC
HOME = [
    File(path=".wallpaper", make=picture, right={}, wrong={"negative": True}),
    File(path="terminal.txt", make=text, right=TERMINAL, wrong=TERMINAL),
    File(path="same.png", make=picture, right={}, wrong={}),
]
TREE_OF = {"type": "accessibility_tree"}
URL = {"type": "active_url_from_accessTree", "goto_prefix": "https://"}
PLAYER = {"type": "vlc_playing_info", "dest": "status.xml"}


CASES = [
    got(
        *("check_accessibility_tree", TREE_OF),
        [
            {
                "selectors": [
                    "application[name=Thunderbird] page-tab-list[attr|id=tabs]>page-tab[name^=About]"
                ]
            }
        ],
    ),
    Case(metric="check_left_panel", result=TREE_OF),
    got(
        *("is_expected_active_tab", URL),
        {"type": "url", "url": "https://scholar.org/citations?user=q"},
    ),
    got(
        *("is_expected_url_pattern_match", URL),
        {"type": "url", "expected": ["https://scholar.org/citations", "user=q"]},
    ),
    got("check_include_exclude", {"type": "vm_terminal_output"}, {"include": ["43 132"]}),
    got(
        "is_expected_active_tab_approximate",
        URL,
        {"type": "url", "url": "https://scholar.org/citations"},
    ),
    Case(
        metric="compare_terminal_and_txt",
        result={"type": "vm_file", "path": "terminal.txt", "dest": "terminal.txt"},
        expected={"type": "vm_terminal_output"},
    ),
    got("is_vlc_playing", PLAYER, {"type": "file_name", "file_name": "film.mp4"}),
    Case(
        metric="is_vlc_fullscreen",
        result={"type": "vm_screen_size"},
        expected={"type": "vm_window_size", "app_class_name": "vlc"},
    ),
    Case(
        metric="compare_images",
        result={"type": "vm_wallpaper", "dest": "wallpaper.png"},
        expected={"type": "vm_file", "path": "same.png", "dest": "same.png"},
        options={"reference_base_result": 0.11},
    ),
]
