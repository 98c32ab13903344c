"""What the published client does on a desktop, through the guest API and with its constants.

From the public sources of DART's runner and its OSWorld fork (`trajectory_runner.py`, `desktop_env.py`,
`ui_tars_utils.py`): the code that is generated for an action, run as a process each; fixed waits;
a screenshot by a program that writes a file; the accessibility tree on each step.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

from benchmarks.results import ROOT
from dart_gui.env.desktop.client import GuestClient
from dart_gui.errors import EnvError, SetupError
from dart_gui.types import Action, Click, Drag, Hotkey, Hover, Press, Scroll, TypeText

RESET_WAIT_S = 60.0  # after every reset
STEP_WAIT_S = 2.0  # after every action
STOP_WAIT_S = 3.0  # after every desktop that is ended
PREFIX = "import pyautogui; import time; pyautogui.FAILSAFE = False; "
SCROLL = 5
PAUSE_S = 0.1  # of pyautogui, after each of its calls
KEY_S, TYPED_S = 0.1, 0.5  # that the generated code gives each character, and what follows a text
PACKAGES = ("pyautogui==0.9.54", "pymsgbox==2.0.1", "pytweening==1.2.0", "python3-xlib==0.15")
CACHE = ROOT / ".bench" / "pyautogui"
SHOT = "/tmp/screenshot.png"


def code_of(action: Action) -> str:
    """The statements that the published parser generates for an action. Points in screen pixels.

    Raises:
        ValueError: there are none.
    """
    match action:
        case Click(point=point, count=2):
            return f"\npyautogui.doubleClick({point.x:g}, {point.y:g}, button='left')"
        case Click(point=point, button=button):
            return f"\npyautogui.click({point.x:g}, {point.y:g}, button='{button}')"
        case Hover(point=point):
            return f"\npyautogui.moveTo({point.x:g}, {point.y:g})"
        case Drag(start=start, end=end):
            return (
                f"\npyautogui.moveTo({start.x:g}, {start.y:g})\n"
                f"\npyautogui.dragTo({end.x:g}, {end.y:g}, duration=1.0)\n"
            )
        case Scroll(direction=("up" | "down") as way, point=point):
            clicks = SCROLL if way == "up" else -SCROLL
            place = "" if point is None else f", x={point.x:g}, y={point.y:g}"
            return f"\npyautogui.scroll({clicks}{place})"
        case Hotkey(keys=keys):
            return f"\npyautogui.hotkey({', '.join(map(repr, keys))})"
        case Press(key=key):
            return f"\npyautogui.press({key!r})"
        case TypeText(text=text):
            line, enters = text.removesuffix("\n"), text.endswith("\n")
            code = f"\npyautogui.write({line!r}, interval={KEY_S})\ntime.sleep({TYPED_S})\n"
            return code + ("\npyautogui.press('enter')" if enters else "")
    raise ValueError(f"the published client has no code for {action}")


def waits_in(action: Action) -> float:
    """Seconds of :func:`code_of` that are sleeps of a fixed length."""
    match action:
        case TypeText(text=text):
            calls = 1 + text.endswith("\n")
            return calls * PAUSE_S + KEY_S * len(text.removesuffix("\n")) + TYPED_S
        case Drag():
            return 2 * PAUSE_S
    return PAUSE_S


async def act(client: GuestClient, action: Action) -> None:
    """Raises ``EnvError`` where the process failed: a step that did nothing is no measurement."""
    done = await client.execute(["python3", "-c", PREFIX + code_of(action)], timeout_s=90)
    if done.returncode != 0:
        raise EnvError(f"pyautogui failed on {action}: {done.error.strip()[-500:]}")


async def screenshot(client: GuestClient) -> bytes:
    """A process that writes a file, as OSWorld's server does; the file is fetched. That server then
    reads the file, pastes a pointer into it and writes it again, which is left out."""
    done = await client.execute(["scrot", "-o", "-p", SHOT])
    png = await client.read_file(SHOT)
    if done.returncode != 0 or png is None:
        raise EnvError(f"scrot failed: {done.error.strip()[-300:]}")
    return png


async def tree(client: GuestClient) -> None:
    """Raises ``EnvError`` where the desktop does not serve it."""
    await client._call("GET", "/accessibility", timeout_s=90)


async def prepare(client: GuestClient, packages: bytes) -> None:
    """What the published image has and this desktop lacks.

    Raises:
        SetupError: it is not there still.
    """
    await client.write_file("packages.tar", packages)
    command = (
        'site=$(python3 -c "import site; print(site.getusersitepackages())") && mkdir -p "$site" && '
        'tar -C "$site" -xf packages.tar && rm packages.tar && touch .Xauthority && '
        "python3 -c 'import pyautogui' && command -v scrot"
    )
    done = await client.execute(command, shell=True)
    if done.returncode != 0:
        raise SetupError(
            "the published client's way needs pyautogui and scrot in the desktop (Debian: `apt-get "
            f"install scrot`): {done.error.strip()[-500:]}"
        )


def fetch_packages(folder: Path = CACHE) -> bytes:
    """pyautogui as a tar file. It is kept out of our environment: its python3-xlib would replace the
    python-xlib of the guest server.

    Raises:
        SetupError: pip could not install it.
    """
    if not (folder / "pyautogui").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
        done = subprocess.run(
            [*command, str(folder), *PACKAGES], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SetupError(f"cannot install {', '.join(PACKAGES)}: {done.stderr[-500:]}")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(folder, arcname=".")
    return file.getvalue()
