"""Tabs of the desktop's Chrome, by the HTTP half of its debugger, asked from inside the desktop: its
port need not be reachable from here."""

from __future__ import annotations

from collections.abc import Sequence

from dart_gui.env.desktop.client import GuestClient
from dart_gui.errors import EnvError

START_S = 60.0
ANSWER_S = 120.0

_COMMIT_S = 12.0
PROFILE_S = {
    **dict.fromkeys(
        (
            *("bookmarks", "chrome_font_size", "chrome_language", "data_delete_automacally"),
            *("default_search_engine", "enable_do_not_track", "enable_enhanced_safety_browsing"),
            *("enable_safe_browsing", "enabled_experiments", "find_installed_extension_name"),
            *("find_unpacked_extension_path", "history", "new_startup_page", "profile_name"),
        ),
        _COMMIT_S,
    ),
    "cookie_data": 32.0,
}
"""Seconds until a change is in the file of the profile that a getter reads: Chrome keeps changes for
10 s, of cookies for 30 s, before it writes them (its ``ImportantFileWriter`` and
``SQLitePersistentCookieStore``). OSWorld waits 20 s before every evaluation."""

PORTS = (9222, 1337)
"""Where OSWorld's tasks have the debugger: behind socat, and without."""

# Runs in the desktop: `python3 -c PROGRAM open|close SECONDS PORT,PORT URL...`.
PROGRAM = """
import json, sys, time, urllib.parse, urllib.request
verb, limit, urls = sys.argv[1], float(sys.argv[2]), sys.argv[4:]
ports = sys.argv[3].split(",")
def ask(port, path, method="GET"):
    request = urllib.request.Request(f"http://localhost:{port}{path}", method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()
def find():
    deadline = time.monotonic() + limit
    while True:
        for port in ports:
            try:
                ask(port, "/json/version")
                return port
            except OSError as error:
                last = error
        if time.monotonic() > deadline:
            sys.exit(f"Chrome's debugger does not answer on port {' and '.join(ports)}: {last}")
        time.sleep(0.2)
def plain(url):
    parts = urllib.parse.urlsplit(url if "//" in url else "//" + url)
    return parts.netloc.lower().removeprefix("www.") + parts.path.rstrip("/") + "?" + parts.query
def tabs(port):
    return [tab for tab in json.loads(ask(port, "/json/list")) if tab["type"] == "page"]
port = find()
before = tabs(port)
if verb == "open":
    for url in urls:
        ask(port, "/json/new?" + urllib.parse.quote(url, safe=""), "PUT")
    for tab in before[-1:] if urls else []:
        ask(port, "/json/close/" + tab["id"])
else:
    for url in urls:
        for tab in [tab for tab in before if plain(tab["url"]) == plain(url)][:1]:
            ask(port, "/json/close/" + tab["id"])
"""


async def open_tabs(
    client: GuestClient, urls: Sequence[str], *, ports: Sequence[int] = PORTS
) -> None:
    """A tab for each, and the one that Chrome started with closed. They may still load then.

    Raises:
        EnvError: Chrome does not answer.
    """
    await _run(client, "open", urls, ports)


async def close_tabs(
    client: GuestClient, urls: Sequence[str], *, ports: Sequence[int] = PORTS
) -> None:
    """One tab for each; nothing happens where there is none. Raises ``EnvError``."""
    await _run(client, "close", urls, ports)


async def _run(client: GuestClient, verb: str, urls: Sequence[str], ports: Sequence[int]) -> None:
    where = ",".join(map(str, ports))
    command = ["python3", "-c", PROGRAM, verb, f"{START_S:g}", where, *urls]
    done = await client.execute(command, timeout_s=ANSWER_S)
    if done.returncode != 0:
        raise EnvError(f"Chrome's tabs cannot be set: {done.error.strip()[-300:]}")
