"""Install what desktops on this machine need, where apt and root allow it. Plain standard library.

Exit code 0: everything is there. 1: something is missing still; the text says what, and what to do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PROGRAMS = {  # program -> Debian package
    "Xvfb": "xvfb",
    "openbox": "openbox",
    "xterm": "xterm",
    "bwrap": "bubblewrap",
    "dbus-daemon": "dbus",
    "mousepad": "mousepad",
    "setpriv": "util-linux",
    "prlimit": "util-linux",
    "python3": "python3-minimal",
    "pgrep": "procps",
}
MORE = ("fonts-dejavu-core", "adwaita-icon-theme", "thunar")
TIMEOUT_S = 900


def missing() -> list[str]:
    return [program for program in PROGRAMS if shutil.which(program) is None]


def install(packages: list[str]) -> str:
    """An empty text, or why it failed."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update"],
        ["apt-get", "install", "--yes", "--no-install-recommends", *packages],
    ):
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"{' '.join(command)} took more than {TIMEOUT_S} s"
        if done.returncode != 0:
            return f"{' '.join(command)}: {done.stdout.strip().splitlines()[-1:]}"
    return ""


def main() -> int:
    lacking = missing()
    if not lacking:
        print("desktops: everything is there")
        return 0
    packages = sorted({PROGRAMS[program] for program in lacking} | set(MORE))
    by_hand = f"install {' '.join(packages)} (Debian's names), then run this again"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        print(f"desktops: {', '.join(lacking)} not found, and not root with apt: {by_hand}")
        return 1
    print(f"desktops: installing {' '.join(packages)}", flush=True)
    failure = install(packages)
    if lacking := missing():
        print(f"desktops: {', '.join(lacking)} not found still. {failure} {by_hand}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
