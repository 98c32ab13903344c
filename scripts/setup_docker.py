"""Run a command with a Docker daemon and the small desktop image: ``setup_docker.py COMMAND...``.

The command finds the daemon's socket in ``DART_DOCKER_HOST`` and the image in ``DART_DOCKER_IMAGE``.
Where a daemon runs already it is used; else, as root, one of our own is started: its state is in
``.docker``, kept for the next time, and what it changed outside (bridges, packet filter, forwarding) is
put back when the command has ended. Plain standard library.

Exit code: that of the command. Where there can be no daemon or image, standard error says what is
missing, and the command runs without them: the tests that need them count as skipped.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".docker"
BEFORE = STATE / "before.json"
DESKTOP = ROOT / "deploy" / "desktop"
WHEELS = DESKTOP / "wheels"
BASE, REGISTRY_BASE, IMAGE = (
    "dart-gui-base:bookworm",
    "debian:bookworm-slim",
    "dart-gui-desktop:small",
)
GUEST_PACKAGES = ("aiohttp", "pydantic", "pillow", "mss", "python-xlib")
PROGRAMS = {  # program -> Debian package
    "dockerd": "docker.io",
    "docker": "docker.io",
    "debootstrap": "debootstrap",
    "iptables-save": "iptables",
    "ip": "iproute2",
}
DEFAULT_SOCKET = "unix:///var/run/docker.sock"
START_S, END_S, STEP_S = 60, 30, 1200
MIN_DISK_GB = 4.0
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")


class Unavailable(Exception):
    """What is missing, and what to do."""


def say(text: str) -> None:
    print(f"setup_docker: {text}", file=sys.stderr, flush=True)


def main(command: Sequence[str]) -> int:
    if not command:
        print(__doc__, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was changed is put back
    STATE.mkdir(exist_ok=True)
    try:
        with (STATE / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one daemon has the folder at a time
            with daemon() as host:
                began = time.monotonic()
                build_image(host)
                say(f"the image {IMAGE} is ready after {time.monotonic() - began:.0f} s")
                environment = {"DART_DOCKER_HOST": host, "DART_DOCKER_IMAGE": IMAGE}
                return subprocess.run(command, env={**os.environ, **environment}).returncode
    except Unavailable as error:
        say(f"no desktops in containers here: {error}")
        return subprocess.run(command).returncode  # what needs them says so, and counts as skipped


# --- the daemon ----------------------------------------------------------------------------------


@contextmanager
def daemon() -> Iterator[str]:
    """The socket of one that answers; ours ends with this."""
    if (host := running_daemon()) is None:
        install()
        host = running_daemon()  # Debian's package starts one where there is systemd
    if host is not None:
        say(f"using the daemon that runs at {host}")
        yield host
        return
    put_back()  # what one of ours left that was killed
    BEFORE.write_text(json.dumps(network_state()))
    folder = Path(tempfile.mkdtemp(prefix="dart-docker-"))
    process = start_daemon(folder)
    try:
        host = f"unix://{folder / 'docker.sock'}"
        await_daemon(host, process, folder / "log")
        remove_left(host)
        yield host
        remove_left(host)
    finally:
        end_daemon(process, folder)
        put_back()


def running_daemon() -> str | None:
    host = os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET
    return host if shutil.which("docker") and answers(host) else None


def answers(host: str) -> bool:
    command = ["docker", "--host", host, "version"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def install() -> None:
    missing = sorted({package for name, package in PROGRAMS.items() if not shutil.which(name)})
    if os.geteuid() != 0:
        needed = f"as root, with {', '.join(missing)}" if missing else "as root"
        raise Unavailable(f"no daemon answers, and only root may start one: run it {needed}")
    free = shutil.disk_usage(STATE).free / 2**30
    if free < MIN_DISK_GB:
        raise Unavailable(f"{free:.1f} GB free at {STATE}; it takes {MIN_DISK_GB:g} GB")
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Unavailable(f"{', '.join(missing)} (Debian's names) not found, and no apt-get")
    say(f"installing {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    get = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
    for command in ([*get, "update"], [*get, "install", "-y", "--no-install-recommends", *missing]):
        run(command, what=f"installing {' '.join(missing)}", env=environment)


def start_daemon(folder: Path) -> subprocess.Popen[bytes]:
    command = ["dockerd", "--data-root", str(STATE / "data"), "--exec-root", str(folder / "exec")]
    command += ["--pidfile", str(folder / "pid"), "--host", f"unix://{folder / 'docker.sock'}"]
    libc = ctypes.CDLL(None, use_errno=True)
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the command; we end the daemon
            preexec_fn=lambda: libc.prctl(1, signal.SIGTERM),  # PR_SET_PDEATHSIG: ends with us
        )


def await_daemon(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not answers(host):
        if process.poll() is not None or time.monotonic() > deadline:
            text = log.read_text(errors="replace").strip()[-1500:]
            raise Unavailable(f"dockerd did not start; it said:\n{text}")
        time.sleep(0.1)


def remove_left(host: str) -> None:
    """In a daemon of our own, everything is ours."""
    docker = ["docker", "--host", host]
    left = output([*docker, "ps", "--all", "--quiet"]).split()
    if left:
        run([*docker, "rm", "--force", "--volumes", *left], what="removing containers")
    run([*docker, "network", "prune", "--force"], what="removing networks")


def end_daemon(process: subprocess.Popen[bytes], folder: Path) -> None:
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # containerd is in its session
        process.wait()
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        mounted = line.split()[1]
        if mounted.startswith((f"{folder}/", f"{STATE}/")):
            subprocess.run(["umount", "--lazy", mounted], check=False)
    shutil.rmtree(folder, ignore_errors=True)


# --- what a daemon changes outside of its folder ---------------------------------------------------


def network_state() -> dict[str, list[str]]:
    links = json.loads(output(["ip", "-json", "link", "show", "type", "bridge"]) or "[]")
    rules = [line for line in output(["iptables-save"]).splitlines() if line[:1] in "*:-"]
    return {
        "bridges": [link["ifname"] for link in links if "ifname" in link],
        "rules": [line.split(" [")[0] for line in rules],  # without counters
        "forward": [FORWARD.read_text().strip()],
    }


def put_back() -> None:
    """Undo what changed since ``BEFORE`` was written; no file, nothing to undo."""
    if not BEFORE.exists():
        return
    before, now = json.loads(BEFORE.read_text()), network_state()
    for name in set(now["bridges"]) - set(before["bridges"]):
        run(["ip", "link", "delete", name], what=f"removing {name}")
    for command in undo_rules(before["rules"], now["rules"]):
        run(command, what="putting back the packet filter")
    if now["forward"] != before["forward"]:
        FORWARD.write_text(before["forward"][0])
    BEFORE.unlink()


def undo_rules(before: Sequence[str], now: Sequence[str]) -> list[list[str]]:
    """``iptables`` commands that lead from ``now`` to ``before``, given as ``iptables-save`` prints them:
    rules that are new are deleted, then chains that are new, and policies set back."""
    old = set(by_table(before))
    rules: list[list[str]] = []
    emptied: list[list[str]] = []
    removed: list[list[str]] = []
    for table, line in by_table(now):
        if (table, line) in old:
            continue
        iptables = ["iptables", "-w", "-t", table]
        if line.startswith("-A"):
            rules.append([*iptables, "-D", *shlex.split(line)[1:]])
            continue
        chain, policy = line[1:].split()[:2]
        if policy == "-":
            emptied.append([*iptables, "-F", chain])
            removed.append([*iptables, "-X", chain])
        else:
            kept = {name: text.split()[1] for name, text in chains(before, table)}
            rules.append([*iptables, "-P", chain, kept.get(chain, "ACCEPT")])
    return [*rules, *emptied, *removed]


def by_table(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    table = ""
    for line in lines:
        if line.startswith("*"):
            table = line[1:]
        else:
            yield table, line


def chains(lines: Sequence[str], wanted: str) -> Iterator[tuple[str, str]]:
    for table, line in by_table(lines):
        if table == wanted and line.startswith(":"):
            yield line[1:].split()[0], line


# --- the image -------------------------------------------------------------------------------------


def build_image(host: str) -> None:
    """Quick where nothing changed: the daemon keeps the layers."""
    environment = {**os.environ, "DOCKER_HOST": host, "DOCKER_BUILDKIT": "0"}
    base = make_base(environment)
    get_wheels()
    arguments = {"BASE": base, "APPS": "small", "PIP_NO_INDEX": "1"}
    command = ["docker", "build", "--quiet", "--network", "host", "--tag", IMAGE]
    command += ["--file", str(DESKTOP / "Dockerfile")]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    run([*command, str(ROOT)], what="building the image", env=environment)


def make_base(environment: dict[str, str]) -> str:
    known = ["docker", "image", "inspect", BASE]
    if subprocess.run(known, env=environment, capture_output=True, check=False).returncode == 0:
        return BASE
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        return REGISTRY_BASE
    say("making the base image with debootstrap (a minute the first time)")
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
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--dest", str(WHEELS), "--constraint", str(constraints)]
    run([*command, *GUEST_PACKAGES], what="getting the packages of the guest server")
    stamp.write_text(wanted)


def run(command: Sequence[str], *, what: str, env: dict[str, str] | None = None) -> None:
    # Standard output is the command's.
    try:
        done = subprocess.run(
            command,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=STEP_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{what} took more than {STEP_S} s") from None
    if done.returncode != 0:
        raise Unavailable(f"{what} failed: {' '.join(command)[:200]}\n{done.stdout[-2000:]}")


def output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
