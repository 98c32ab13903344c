"""The full desktop image: each application starts, as the user of the desktop and within its limits.

The screenshots stay in the folder that DART_SCREENSHOTS names, to be looked at.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dart_gui.env.desktop.client import GuestClient
from tests.container_desktop import container_desktop

pytestmark = [pytest.mark.docker(apps="all"), pytest.mark.slow]
# Class of the window, what starts it, and colours of a window that is painted.
APPLICATIONS = [
    ("libreoffice-calc", ["soffice", "--calc"], 100),
    ("libreoffice-writer", ["soffice", "--writer"], 100),
    ("libreoffice-impress", ["soffice", "--impress"], 100),
    ("Gimp", ["gimp"], 100),
    ("thunderbird-default", ["thunderbird"], 100),
    ("vlc", ["vlc"], 100),
    ("Chromium", ["chromium"], 100),
    ("Geany", ["geany"], 100),
    ("Thunar", ["thunar"], 100),
    ("Mousepad", ["mousepad"], 20),
    ("Xfce4-terminal", ["xfce4-terminal"], 20),
    ("XTerm", ["xterm"], 3),
]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[GuestClient]:
    async with container_desktop(tmp_path) as made:
        yield made


@pytest.mark.parametrize(("window", "command", "colors"), APPLICATIONS, ids=lambda part: str(part))
async def test_it_starts_and_paints_a_window(
    client: GuestClient, window: str, command: list[str], colors: int
) -> None:
    await client.launch(command)
    await client.wait(
        window_name=window, by_class=True, min_colors=colors, stable_s=1.0, timeout_s=120
    )
    if folder := os.environ.get("DART_SCREENSHOTS"):
        png = (await client.screenshot()).png
        Path(folder, f"{window}.png").write_bytes(png)
    owners = await client.execute("ps -e -o uid= | sort -u", shell=True)
    assert owners.output.split() == ["1000"]
