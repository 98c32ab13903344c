"""Run a command with an engine and a desktop image: ``setup_docker.py [OPTIONS] COMMAND...``.

    --engine docker|podman    Docker, or Podman's service
    --apps small|all          a terminal and an editor, or OSWorld's applications (3 GB)

The command finds the engine's socket in ``DART_DOCKER_HOST``, the image in ``DART_DOCKER_IMAGE`` and its
applications in ``DART_DOCKER_APPS``. Where a Docker daemon runs already it is used; else, as root, one
of our own is started, and so is Podman: its state is in ``.docker``, kept for the next time, and
what it changed outside (bridges, packet filter, forwarding) is put back when the command has ended. Plain
standard library.

Exit code: that of the command. Where there can be no engine or image, standard error says what is
missing, and the command runs without them: the tests that need them count as skipped.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from container_engine import ENGINES, Engine, Unavailable, alone, run, say

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".docker"
DESKTOP = ROOT / "deploy" / "desktop"
WHEELS = DESKTOP / "wheels"
BASE, REGISTRY_BASE = "dart-gui-base:bookworm", "debian:bookworm-slim"
IMAGES = {"small": "dart-gui-desktop:small", "all": "dart-gui-desktop:all"}
GUEST_PACKAGES = ("aiohttp", "pydantic", "pillow", "mss", "python-xlib", "pyautogui")


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    command = options.command
    image = IMAGES[options.apps]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was changed is put back
    STATE.mkdir(exist_ok=True)
    try:
        # One daemon has the folder at a time.
        with alone(STATE / "lock"), ENGINES[options.engine](STATE) as engine:
            began = time.monotonic()
            build_image(engine, image, options.apps)
            say(f"the image {image} is ready after {time.monotonic() - began:.0f} s")
            environment = {"DART_DOCKER_HOST": engine.host, "DART_DOCKER_IMAGE": image}
            environment["DART_DOCKER_APPS"] = options.apps
            return subprocess.run(command, env={**os.environ, **environment}).returncode
    except Unavailable as error:
        say(f"no desktops in containers here: {error}")
        return subprocess.run(command).returncode  # what needs them says so, and counts as skipped


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=sorted(ENGINES), default="docker")
    parser.add_argument("--apps", choices=sorted(IMAGES), default="small")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    if not options.command:
        parser.error("give the command to run")
    return options


def build_image(engine: Engine, image: str, apps: str) -> None:
    """Quick where nothing changed: the daemon keeps the layers."""
    base = make_base(engine)
    get_wheels()
    arguments = {"BASE": base, "APPS": apps, "PIP_NO_INDEX": "1"}
    command = ["build", "--quiet", "--network", "host", "--tag", image]
    command += ["--file", str(DESKTOP / "Dockerfile")]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    engine.run(*command, str(ROOT), what="building the image")


def make_base(engine: Engine) -> str:
    if engine.succeeds("image", "inspect", BASE):
        return BASE
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        return REGISTRY_BASE
    say("making the base image with debootstrap (a minute the first time)")
    environment = {**os.environ, **engine.environment, "DOCKER": " ".join(engine.cli)}
    run([str(DESKTOP / "base_image.sh"), BASE], what="making the base image", env=environment)
    return BASE


def get_wheels() -> None:
    """By this machine's pip, which knows where its index is; the image has the same Python."""
    if sys.version_info[:2] != (3, 11):
        raise Unavailable(f"Python {sys.version.split()[0]}; the image has Debian's 3.11")
    constraints = ROOT / "constraints.txt"
    stamp = WHEELS / "made-from"
    wanted = hashlib.sha256(constraints.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    shutil.rmtree(WHEELS, ignore_errors=True)
    # Built here where there is none: pyautogui and what it needs are published as sources.
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--disable-pip-version-check"]
    command += ["--wheel-dir", str(WHEELS), "--constraint", str(constraints)]
    run([*command, *GUEST_PACKAGES], what="getting the packages of the guest server")
    stamp.write_text(wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
