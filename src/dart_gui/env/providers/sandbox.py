"""The namespaces of a desktop, by bubblewrap: own mounts, processes, network, IPC and host name.

As root the desktop's programs run under a user id of their own, without capabilities; its root file
system is read-only and shows no more of this machine than its programs and this package. As another
user a user namespace does the same, where the kernel allows it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dart_gui

HOME = "/home/user"
USER_ID = 52_000
"""As root: of the desktop's programs. One that nobody has: a real user could signal them."""
MARK = "DART_DESKTOP"
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_SYSTEM = ("/usr", "/etc", "/opt", "/var/lib/libreoffice", "/var/cache/fontconfig")
_LINKED = ("/bin", "/sbin", "/lib", "/lib64")
_PASSWD = "root:x:0:0:root:/root:/bin/sh\nuser:x:{uid}:{uid}:user:{home}:/bin/bash\n"
_GROUP = "root:x:0:\nuser:x:{uid}:\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """Sizes in MB; what is written in the desktop is in memory, and gone with it."""

    home_mb: int = 512
    tmp_mb: int = 256
    shm_mb: int = 256
    max_file_mb: int = 512
    dies_with_parent: bool = True  # with the process that made it, however that ends


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFiles:
    """Descriptors of files whose text bubblewrap copies to a place in the desktop."""

    passwd: int
    group: int


def user_id(*, as_root: bool) -> int:
    return USER_ID if as_root else 1000


def account_files(*, as_root: bool) -> tuple[str, str]:
    """Texts of ``/etc/passwd`` and ``/etc/group``: programs look up their own name and home."""
    uid = user_id(as_root=as_root)
    return _PASSWD.format(uid=uid, home=HOME), _GROUP.format(uid=uid)


def sandbox_argv(
    spec: SandboxSpec, command: Sequence[str], *, as_root: bool, mark: str, files: DataFiles
) -> list[str]:
    """The command line that runs ``command`` in new namespaces.

    ``mark`` stands on the command line of the two processes of bubblewrap: outside, and as the
    first process inside, with whose end all others end.
    """
    uid = user_id(as_root=as_root)
    argv = ["bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    argv += ["--unshare-cgroup-try", "--hostname", "desktop", "--new-session", "--clearenv"]
    argv += ["--setenv", MARK, mark]
    if spec.dies_with_parent:
        argv.append("--die-with-parent")
    argv += _mounts(spec, files)
    for name, value in _environ().items():
        argv += ["--setenv", name, value]
    limits = ["prlimit", f"--fsize={spec.max_file_mb << 20}", "--core=0", "--nofile=4096:4096"]
    if not as_root:
        argv += ["--unshare-user", "--uid", str(uid), "--gid", str(uid)]
        return [*argv, *limits, *command]
    for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
        argv += ["--cap-add", capability]
    drop = ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
    drop += ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    return [*argv, *limits, *drop, *command]


def _mounts(spec: SandboxSpec, files: DataFiles) -> list[str]:
    argv: list[str] = []
    for path in _SYSTEM:
        argv += ["--ro-bind-try", path, path]
    for path in _LINKED:
        if os.path.islink(path):
            argv += ["--symlink", os.readlink(path), path]
        else:
            argv += ["--ro-bind-try", path, path]
    for descriptor, path in ((files.passwd, "/etc/passwd"), (files.group, "/etc/group")):
        argv += ["--perms", "0644", "--ro-bind-data", str(descriptor), path]
    argv += ["--proc", "/proc", "--dev", "/dev"]
    homes = os.path.dirname(HOME)
    for path, size_mb in (("/dev/shm", spec.shm_mb), ("/tmp", spec.tmp_mb), (homes, spec.home_mb)):
        argv += ["--perms", "1777", "--size", str(size_mb << 20), "--tmpfs", path]
    argv += ["--perms", "1777", "--size", str(16 << 20), "--tmpfs", "/run", "--chdir", "/"]
    # After the file systems in memory: an environment in a user's home would be hidden by them.
    for path in python_paths():
        for parent in reversed(Path(path).parents[:-1]):
            argv += ["--perms", "0755", "--dir", str(parent)]  # else with the rights of the folder
        argv += ["--ro-bind", path, path]
    return [*argv, "--remount-ro", "/dev", "--remount-ro", "/"]


def python_paths() -> list[str]:
    """Folders of the running interpreter, its environment and this package, outermost only."""
    source = str(Path(dart_gui.__file__).resolve().parents[1])
    found = {os.path.realpath(sys.base_prefix), os.path.abspath(sys.prefix), source}
    mounted = [path for path in _SYSTEM if os.path.exists(path)]
    kept: list[str] = []
    for path in sorted(found):
        if not any(path == top or path.startswith(f"{top}/") for top in (*mounted, *kept)):
            kept.append(path)
    return kept


def unreadable(paths: Sequence[str], *, as_root: bool) -> list[str]:
    """Those that the user of the desktop may not enter: it is in nobody's group."""
    return [path for path in paths if as_root and os.stat(path).st_mode & 0o005 != 0o005]


def _environ() -> dict[str, str]:
    source = str(Path(dart_gui.__file__).resolve().parents[1])
    return {
        "PATH": PATH,
        "HOME": HOME,
        "USER": "user",
        "LOGNAME": "user",
        "SHELL": "/bin/bash",
        "TERM": "xterm",
        "PYTHONDONTWRITEBYTECODE": "1",
        # The guest server drops it: what it starts has the system's Python.
        "PYTHONPATH": source,
    }
