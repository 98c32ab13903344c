"""Set up this checkout: a virtual environment, the pinned dependencies, a Chromium.

Plain standard library, run by any Python 3.11 (``scripts/setup`` finds one). A run that finds
nothing changed returns at once; one that was interrupted is simply run again.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import setup_browser

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
CONSTRAINTS = ROOT / "constraints.txt"
STAMP = VENV / "dart-gui-setup.json"
EXTRAS = "local,dev"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_TIMEOUT_S = 300
PIP_PROBE = ("--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-")


class SetupFailed(Exception):
    """What is missing and what to do about it, in one paragraph."""


def say(text: str) -> None:
    print(f"setup: {text}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/setup", description=__doc__)
    parser.add_argument("--force", action="store_true", help="set up again though nothing changed")
    options = parser.parse_args(arguments)
    # The lock lets `make train` and `make test` be started side by side on a fresh clone.
    with open(ROOT / "pyproject.toml") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            set_up(force=options.force)
        except (SetupFailed, setup_browser.BrowserFailed) as error:
            print(f"setup: {error}", file=sys.stderr)
            return 1
    return 0


def set_up(*, force: bool) -> None:
    wanted = fingerprint()
    if not force and is_current(wanted):
        return
    started_at = time.monotonic()
    check_python()
    if not force and read_stamp().get("fingerprint") == wanted:
        say("the dependencies are as pinned; looking for the browser again")
        torch = str(read_stamp().get("torch"))
    else:
        STAMP.unlink(missing_ok=True)
        make_venv()
        torch = install_dependencies()
    browser = setup_browser.ensure(PYTHON, ROOT, say)
    write_stamp({"fingerprint": wanted, "torch": torch, "browser": browser})
    say(f"ready after {time.monotonic() - started_at:.0f} s")


def fingerprint() -> str:
    """Of everything that the virtual environment was made from, its own place included."""
    digest = hashlib.sha256(f"{ROOT}\n{sys.version_info[:2]}\n".encode())
    for path in (ROOT / "pyproject.toml", CONSTRAINTS, Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_current(wanted: str) -> bool:
    stamp = read_stamp()
    return (
        stamp.get("fingerprint") == wanted
        and os.access(PYTHON, os.X_OK)
        and os.access(str(stamp.get("browser")), os.X_OK)
    )


def read_stamp() -> Mapping[str, object]:
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(stamp: Mapping[str, object]) -> None:
    partial = STAMP.with_suffix(".partial")
    partial.write_text(json.dumps(stamp, indent=2) + "\n")
    partial.replace(STAMP)


def check_python() -> None:
    if sys.version_info[:2] != (3, 11):
        raise SetupFailed(
            f"this is Python {platform.python_version()}, but the pinned dependencies are built "
            "for 3.11. Run scripts/setup, which looks for one, or give DART_PYTHON=/path/to/python."
        )
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupFailed(
            f"{sys.executable} lacks the module {missing[0]}, without which no virtual environment "
            "can be made. On Debian and Ubuntu install it with "
            "`apt-get install python3.11-venv` (as root), or point DART_PYTHON to another Python "
            "3.11, such as one from pyenv or uv, and run the command again."
        )


def make_venv() -> None:
    """Keep a usable environment (pip mends the rest); replace one that was moved or is broken."""
    if VENV.exists() and not (is_here := made_here(VENV)):
        say(f"{VENV} was made elsewhere or is incomplete: making it anew")
        shutil.rmtree(VENV)
    elif VENV.exists() and is_here:
        return
    say(f"making the virtual environment {VENV} with {sys.executable}")
    run([sys.executable, "-m", "venv", str(VENV)], what="making the virtual environment")


def made_here(venv: Path) -> bool:
    """Scripts of an environment name its absolute path, so a moved one does not work."""
    try:
        command = re.search(r"^command = (.*)$", (venv / "pyvenv.cfg").read_text(), re.MULTILINE)
    except OSError:
        return False
    python = [str(venv / "bin" / "python"), "-m", "pip", "--version"]
    return (
        command is not None
        and command[1].endswith(f" {venv}")
        and subprocess.run(python, capture_output=True, check=False).returncode == 0
    )


def install_dependencies() -> str:
    """Install what pyproject.toml names at the versions of constraints.txt; the torch installed."""
    pin = torch_pin()
    pip("install", "-qq", "--upgrade", "--constraint", str(CONSTRAINTS), "pip")
    requirement, index = choose_torch(pin)
    say("installing the pinned dependencies (about 2 GB on disk; minutes the first time)")
    constrained = ("-qq", "--constraint", str(CONSTRAINTS))
    pip("install", *constrained, *index, requirement)
    pip(
        *("install", *constrained, "--build-constraint", str(CONSTRAINTS)),
        *("--editable", f"{ROOT}[{EXTRAS}]"),
    )
    installed = subprocess.run(
        [str(PYTHON), "-c", "import importlib.metadata as m; print(m.version('torch'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    say(f"torch {installed} is installed")
    return installed


def torch_pin() -> str:
    for line in CONSTRAINTS.read_text().splitlines():
        if line.startswith("torch=="):
            return line.strip()
    raise SetupFailed(f"{CONSTRAINTS} names no version of torch: it was edited; restore it.")


def choose_torch(pin: str) -> tuple[str, list[str]]:
    """The requirement and the index options that give the build for this machine.

    The default build for Linux brings several GB of CUDA libraries, so without a GPU a CPU build is
    looked for: first where pip is configured to look, then at PyTorch's own index.
    """
    if has_gpu():
        say(f"an NVIDIA GPU answers: taking pip's default build of {pin}")
        return pin, []
    if is_cpu_build(pin, []):
        say(f"no NVIDIA GPU: pip's configured sources hold a CPU build of {pin}; taking it")
        return pin, []
    cpu, index = f"{pin}+cpu", ["--extra-index-url", PYTORCH_CPU_INDEX]
    if is_cpu_build(cpu, index):
        say(f"no NVIDIA GPU: taking {cpu} from {PYTORCH_CPU_INDEX}")
        return cpu, index
    say(f"no NVIDIA GPU, but no CPU build is reachable: taking the default {pin} (several GB)")
    return pin, []


def has_gpu() -> bool:
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    try:
        listing = subprocess.run(
            [command, "--list-gpus"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU" in listing.stdout


def is_cpu_build(requirement: str, index: Sequence[str]) -> bool:
    """Ask pip what it would install; False where it finds nothing."""
    command = [str(PYTHON), "-m", "pip", "install", *PIP_PROBE, *index, requirement]
    try:
        probe = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    if probe.returncode != 0:
        return False
    return reports_cpu_build(json.loads(probe.stdout))


def reports_cpu_build(report: Mapping[str, Any]) -> bool:
    """Whether pip's installation report names a torch without CUDA libraries."""
    (torch,) = (
        item["metadata"] for item in report["install"] if item["metadata"]["name"] == "torch"
    )
    needs = torch.get("requires_dist", [])
    return torch["version"].endswith("+cpu") or not any(
        need.startswith(("nvidia-", "cuda-")) for need in needs
    )


def pip(*arguments: str) -> None:
    run([str(PYTHON), "-m", "pip", *arguments], what="pip")


def run(command: Sequence[str], *, what: str) -> None:
    # A PYTHONPATH or a user's site would leak packages into the environment that is being made.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_USER": "0", "PYTHONNOUSERSITE": "1"}
    environment |= {"PIP_ROOT_USER_ACTION": "ignore"}
    code = subprocess.run(command, env=environment, check=False).returncode
    if code != 0:
        raise SetupFailed(
            f"{what} failed with exit code {code}; its own message is above. If the network was at "
            f"fault, run the command again: what is there already is kept. Else remove {VENV} "
            "(`make clean`) and try once more."
        )


if __name__ == "__main__":
    sys.exit(main())
