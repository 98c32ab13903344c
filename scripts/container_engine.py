"""A daemon of Docker or Podman for the time of a ``with``: one that runs, or as root one of our own.

The state of ours is kept for the next time; what it changed outside (bridges, packet filter, forwarding)
is put back at the end, or after a kill at the next start. Plain standard library.
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
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

PROGRAMS = {  # program -> Debian package
    "dockerd": "docker.io",
    "docker": "docker.io",
    "debootstrap": "debootstrap",
    "iptables-save": "iptables",
    "ip": "iproute2",
}
PODMAN_PROGRAMS = {
    "podman": "podman",
    "debootstrap": "debootstrap",
    "iptables-save": "iptables",
    "ip": "iproute2",
}
NETAVARK = (Path("/usr/lib/podman/netavark"), Path("/usr/libexec/podman/netavark"))
DEFAULT_SOCKET = "unix:///var/run/docker.sock"
START_S, END_S, STEP_S = 60, 30, 2400
TURN_S, POLL_S = 3600, 0.1
MIN_DISK_GB = 4.0
MACHINE_LOCK = Path("/run/dart-container-engine.lock")
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
# Podman would raise both limits, which takes a capability root of a container lacks. Locks are files,
# as the default is one piece of shared memory for the machine. No events: there may be no journald.
PODMAN_CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[network]
network_backend = "netavark"
network_config_dir = "{state}/networks"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "{runtime}"
static_dir = "{state}/libpod"
tmp_dir = "{run}/tmp"
volume_path = "{state}/volumes"
"""
PODMAN_STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{state}/root"
runroot = "{run}/root"
"""


class Unavailable(Exception):
    """What is missing, and what to do."""


@dataclass(frozen=True)
class Engine:
    """``cli`` and ``environment`` lead to the daemon's state; ``host`` is the socket of its API."""

    cli: tuple[str, ...]
    host: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, *arguments: str, what: str) -> None:
        run([*self.cli, *arguments], what=what, env={**os.environ, **self.environment})

    def succeeds(self, *arguments: str) -> bool:
        command = [*self.cli, *arguments]
        env = {**os.environ, **self.environment}
        return subprocess.run(command, env=env, capture_output=True, check=False).returncode == 0

    def output(self, *arguments: str) -> str:
        return output([*self.cli, *arguments], env={**os.environ, **self.environment})


def say(text: str) -> None:
    print(f"setup_docker: {text}", file=sys.stderr, flush=True)


@contextmanager
def docker(state: Path) -> Iterator[Engine]:
    """The daemon that answers; else one of ours, which ends with this."""
    if (host := running_docker()) is None:
        install(PROGRAMS, state)
        host = running_docker()  # Debian's package starts one where there is systemd
    if host is not None:
        say(f"using the daemon that runs at {host}")
        yield docker_engine(host)
        return
    folder = Path(tempfile.mkdtemp(prefix="dart-docker-"))
    host = f"unix://{folder / 'docker.sock'}"
    command = ["dockerd", "--data-root", str(state / "data"), "--exec-root", str(folder / "exec")]
    command += ["--pidfile", str(folder / "pid"), "--host", host]
    engine = docker_engine(host)
    with ours(engine, command, state, folder, lambda: engine.succeeds("version")):
        yield engine


@contextmanager
def podman(state: Path) -> Iterator[Engine]:
    """Podman's service over a storage of our own: what the machine has of Podman is not touched."""
    if missing := missing_for_podman():
        raise Unavailable(f"Podman needs {', '.join(missing)}: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise Unavailable("Podman's service is started here as root only: run it as root")
    # A short path, for the sockets in it, and the same one after a kill: Podman's state names it.
    name = hashlib.sha256(os.fsencode(state)).hexdigest()[:8]
    folder, state = Path(f"/run/dart-podman-{name}"), state / "podman"
    for path in (folder, state):
        path.mkdir(mode=0o700, exist_ok=True, parents=True)
    places = {"state": state, "run": folder, "runtime": "runc" if shutil.which("runc") else "crun"}
    (folder / "containers.conf").write_text(PODMAN_CONF.format(**places))
    (folder / "storage.conf").write_text(PODMAN_STORAGE.format(**places))
    host = f"unix://{folder / 'podman.sock'}"
    environment = {
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
    }
    engine = Engine(("podman",), host, environment)
    command = ["podman", "system", "service", "--time", "0", host]
    with ours(engine, command, state, folder, lambda: listens(folder / "podman.sock")):
        yield engine


ENGINES = {"docker": docker, "podman": podman}


def docker_engine(host: str) -> Engine:
    # The builder that needs no plugin.
    return Engine(("docker", "--host", host), host, {"DOCKER_BUILDKIT": "0"})


def running_docker() -> str | None:
    host = os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET
    there = shutil.which("docker") and docker_engine(host).succeeds("version")
    return host if there else None


def missing_for_podman() -> list[str]:
    """Debian's packages."""
    missing = {package for name, package in PODMAN_PROGRAMS.items() if not shutil.which(name)}
    missing |= set() if any(path.exists() for path in NETAVARK) else {"netavark"}
    missing |= set() if shutil.which("runc") or shutil.which("crun") else {"runc"}
    return sorted(missing)


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def install(programs: Mapping[str, str], state: Path) -> None:
    missing = sorted({package for name, package in programs.items() if not shutil.which(name)})
    if os.geteuid() != 0:
        needed = f"as root, with {', '.join(missing)}" if missing else "as root"
        raise Unavailable(f"no daemon answers, and only root may start one: run it {needed}")
    free = shutil.disk_usage(state).free / 2**30
    if free < MIN_DISK_GB:
        raise Unavailable(f"{free:.1f} GB free at {state}; it takes {MIN_DISK_GB:g} GB")
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise Unavailable(f"{', '.join(missing)} (Debian's names) not found, and no apt-get")
    say(f"installing {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    get = ["apt-get", "-qq", "-o", "Dpkg::Use-Pty=0"]
    for command in ([*get, "update"], [*get, "install", "-y", "--no-install-recommends", *missing]):
        run(command, what=f"installing {' '.join(missing)}", env=environment)


@contextmanager
def ours(
    engine: Engine,
    command: Sequence[str],
    state: Path,
    folder: Path,
    answers: Callable[[], bool],
) -> Iterator[None]:
    before = state / "before.json"
    with alone(MACHINE_LOCK):  # else each would undo what another needs
        put_back(before)  # what one of ours left that was killed
        before.write_text(json.dumps(network_state()))
        process = start_daemon(command, folder / "log", engine.environment)
        try:
            await_daemon(answers, process, folder / "log")
            remove_left(engine)
            yield
            remove_left(engine)
        finally:
            end_daemon(process, (folder, state))
            put_back(before)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time. The file says who, and a second one, which waits, says it too."""
    with path.open("a+", encoding="utf-8", errors="replace") as file:
        take_turn(file, path)
        file.truncate(0)
        since = time.strftime("%F %T")
        file.write(f"process {os.getpid()} since {since}: {shlex.join(sys.argv)[:300]}")
        file.flush()
        yield


def take_turn(file: TextIO, path: Path) -> None:
    """Raises ``Unavailable`` where the turn does not come within ``TURN_S``."""
    said, deadline = "", time.monotonic() + TURN_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read()
        if time.monotonic() > deadline:
            raise Unavailable(f"{path} was not free within {TURN_S} s; it is held by {holder}")
        if holder and holder != said:
            say(f"waiting for the engine of another process ({path}): {holder}")
            said = holder
        time.sleep(POLL_S)


def start_daemon(
    command: Sequence[str], log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    libc = ctypes.CDLL(None, use_errno=True)
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C is for the command; we end the daemon
            preexec_fn=lambda: libc.prctl(1, signal.SIGTERM),  # PR_SET_PDEATHSIG: ends with us
        )


def await_daemon(answers: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not answers():
        if process.poll() is not None or time.monotonic() > deadline:
            text = log.read_text(errors="replace").strip()[-1500:]
            raise Unavailable(f"{process.args!r} did not start; it said:\n{text}")
        time.sleep(0.1)


def remove_left(engine: Engine) -> None:
    """In a daemon of our own, everything is ours."""
    left = engine.output("ps", "--all", "--quiet").split()
    if left:
        engine.run("rm", "--force", "--volumes", *left, what="removing containers")
    engine.run("network", "prune", "--force", what="removing networks")


def end_daemon(process: subprocess.Popen[bytes], folders: tuple[Path, Path]) -> None:
    process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # containerd is in its session
        process.wait()
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        mounted = line.split()[1]
        if mounted.startswith(tuple(f"{folder}/" for folder in folders)):
            subprocess.run(["umount", "--lazy", mounted], check=False)
    shutil.rmtree(folders[0], ignore_errors=True)


# --- what a daemon changes outside of its folder ---------------------------------------------------


def network_state() -> dict[str, list[str]]:
    links = json.loads(output(["ip", "-json", "link", "show", "type", "bridge"]) or "[]")
    rules = [line for line in output(["iptables-save"]).splitlines() if line[:1] in "*:-"]
    return {
        "bridges": [link["ifname"] for link in links if "ifname" in link],
        "rules": [line.split(" [")[0] for line in rules],  # without counters
        "forward": [FORWARD.read_text().strip()],
    }


def put_back(path: Path) -> None:
    """Undo what changed since ``path`` was written; no file, nothing to undo."""
    if not path.exists():
        return
    before, now = json.loads(path.read_text()), network_state()
    for name in set(now["bridges"]) - set(before["bridges"]):
        run(["ip", "link", "delete", name], what=f"removing {name}")
    for command in undo_rules(before["rules"], now["rules"]):
        run(command, what="putting back the packet filter")
    if now["forward"] != before["forward"]:
        FORWARD.write_text(before["forward"][0])
    path.unlink()


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


def run(command: Sequence[str], *, what: str, env: Mapping[str, str] | None = None) -> None:
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


def output(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unavailable(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout
