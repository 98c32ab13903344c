"""Find a Chromium that paints text, or install one. Plain standard library.

The runtime's own finder (``dart_gui.env.browser.chromium``) says what is there, so what the set-up
accepts is what a run will use. Where it finds nothing, in this order: Debian's package (as root),
Playwright's download, Debian's packages unpacked into ``.browser/`` (not root).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PACKAGES = ("chromium-headless-shell", "chromium")  # the second where the first does not exist
# The pages name Arial and sans-serif: these are what Debian resolves them to, and what the shipped
# agent was trained on. Chromium depends on no font at all.
FONT_PACKAGES = ("fonts-liberation", "fonts-dejavu-core", "fontconfig-config")
DOWNLOAD_TIMEOUT_S = 900
FIND_TIMEOUT_S = 60
IGNORE_SYSTEM = "DART_SETUP_IGNORE_SYSTEM_BROWSER"  # for tests of the ways to install one
NONE_FOUND = 3
FIND = f"""
from dart_gui.env.browser.chromium import find_chromium
from dart_gui.errors import SetupError
try:
    found = find_chromium()
except SetupError as error:
    print(error)
    raise SystemExit({NONE_FOUND})
print(found.path, found.source, sep="\t")
"""

WRAPPER = """\
#!/bin/sh
# Runs the unpacked Chromium with its own libraries and fonts; made by scripts/setup.
here=$(dirname "$(readlink -f "$0")")
export LD_LIBRARY_PATH="{libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
export FONTCONFIG_FILE="$here/fonts.conf" FONTCONFIG_PATH="$here/root/etc/fonts"
exec "$here/root/{executable}" "$@"
"""
# Not FONTCONFIG_SYSROOT: Chromium opens font files by their path without it.
FONTS_CONF = """\
<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig>
  <dir prefix="relative">root/usr/share/fonts</dir>
  <cachedir prefix="xdg">fontconfig</cachedir>
  <include ignore_missing="yes">conf.d</include>
</fontconfig>
"""

Say = Callable[[str], None]


class BrowserFailed(Exception):
    """No browser was found and none could be installed; says what to do."""


def ensure(python: Path, root: Path, say: Say) -> str:
    """The path of a Chromium that paints text.

    Raises:
        BrowserFailed: none was found and every way to install one failed, or the one that
            DART_CHROMIUM names is none.
    """
    if path := usable(python, root, say):
        return path
    for name, install in ways(python, root):
        say(f"no usable browser yet: trying {name}")
        try:
            install()
        except (OSError, subprocess.SubprocessError, LookupError) as error:
            say(f"{name} did not work: {explain(error)}")
            continue
        if path := usable(python, root, say):
            return path
    raise BrowserFailed(
        "no Chromium was found and none could be installed (each try is named above). Install one "
        "as root (Debian: `apt-get install chromium-headless-shell fonts-liberation`; elsewhere: "
        "`.venv/bin/python -m playwright install --with-deps chromium-headless-shell`), or give "
        "the path of one as DART_CHROMIUM=/path/to/chromium, and run the command again."
    )


def usable(python: Path, root: Path, say: Say) -> str | None:
    environment = dict(os.environ)
    if ignores_system():
        environment["PATH"] = ""
    found = subprocess.run(
        [str(python), "-c", FIND],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=FIND_TIMEOUT_S,
        check=False,
    )
    if found.returncode == NONE_FOUND and not os.environ.get("DART_CHROMIUM"):
        return None
    if found.returncode != 0:
        raise BrowserFailed((found.stdout + found.stderr).strip())
    path, source = found.stdout.strip().split("\t")
    if not paints_text(path):
        say(f"{path} (from {source}) does not paint a test page with text: fonts or libraries lack")
        return None
    say(f"browser: {path} (from {source})")
    return path


def paints_text(executable: str) -> bool:
    """Whether two words of as many letters give two pictures.

    Without fonts each letter is the same empty box; without libraries there is no picture at all.
    """
    with tempfile.TemporaryDirectory(prefix="dart-gui-") as folder:
        shots = [screenshot(executable, Path(folder), text) for text in ("illi", "WMMW")]
    return None not in shots and shots[0] != shots[1]


def screenshot(executable: str, folder: Path, text: str) -> bytes | None:
    page, picture = folder / f"{text}.html", folder / f"{text}.png"
    page.write_text(f"<p style='font-family: Arial, sans-serif'>{text}</p>")
    command = [
        *(executable, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=160,210"),
        *(f"--user-data-dir={folder / 'profile'}", f"--screenshot={picture}", page.as_uri()),
    ]
    try:
        subprocess.run(command, capture_output=True, timeout=FIND_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return picture.read_bytes() if picture.exists() else None


def ways(python: Path, root: Path) -> list[tuple[str, Callable[[], None]]]:
    """The ways to install one on this machine, in the order to try them.

    Ubuntu's packages of that name only start the snap service, which containers lack; there
    Playwright's download is the way.
    """
    has_apt = shutil.which("apt-get") is not None and os_id() != "ubuntu"
    as_root = os.geteuid() == 0 and not ignores_system()
    playwright = ("Playwright's download", lambda: install_by_playwright(python))
    if has_apt and as_root:
        return [("Debian's package (apt-get)", install_by_apt), playwright]
    if has_apt:
        unpack = lambda: unpack_packages(root / ".browser")  # noqa: E731
        return [playwright, ("Debian's packages, unpacked into .browser/", unpack)]
    return [playwright]


def ignores_system() -> bool:
    return os.environ.get(IGNORE_SYSTEM, "") not in ("", "0")


def os_id() -> str:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return ""
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    return values.get("ID", "").strip('"')


def install_by_playwright(python: Path) -> None:
    with_deps = ["--with-deps"] if os.geteuid() == 0 and shutil.which("apt-get") else []
    check(
        [str(python), "-m", "playwright", "install", *with_deps, "chromium-headless-shell"],
        environment={"PLAYWRIGHT_DOWNLOAD_CONNECTION_TIMEOUT": "20000"},
    )


def install_by_apt() -> None:
    check(["apt-get", "update"])
    package = first_available([])
    check(["apt-get", "install", "--yes", "--no-install-recommends", package, *FONT_PACKAGES])


def first_available(options: Sequence[str]) -> str:
    for package in PACKAGES:
        shown = check(["apt-cache", *options, "search", "--names-only", f"^{package}$"])
        if shown.strip():
            return package
    raise LookupError(f"apt knows neither {' nor '.join(PACKAGES)}")


def unpack_packages(folder: Path) -> None:
    """Debian's Chromium with all it needs in ``folder``, without touching the system.

    The dependencies are resolved as if nothing were installed: the result does not hang on what
    this machine happens to have. Only the C library stays the system's: it must match its loader.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    archives = download_packages(partial / "apt")
    for archive in archives:
        check(["dpkg-deb", "--extract", str(archive), str(partial / "root")])
    shutil.rmtree(partial / "apt")
    repair_font_links(partial / "root" / "etc" / "fonts" / "conf.d", partial / "root")
    write_wrapper(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def download_packages(folder: Path) -> list[Path]:
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    options = [f"-oDir::State={folder}", f"-oDir::State::lists={folder / 'lists'}"]
    options += [f"-oDir::State::status={folder / 'status'}", f"-oDir::Cache={folder / 'cache'}"]
    options += ["-oDebug::NoLocking=1", "-oAPT::Sandbox::User=", "-oDir::Log=/dev/null"]
    options += ["-oAPT::Update::Post-Invoke=", "-oAPT::Update::Post-Invoke-Success="]
    check(["apt-get", *options, "update"])
    install = ["install", "--yes", "--no-install-recommends", "--download-only"]
    check(["apt-get", *options, *install, first_available(options), *FONT_PACKAGES])
    archives = sorted((folder / "cache" / "archives").glob("*.deb"))
    return [archive for archive in archives if not archive.name.startswith("libc6_")]


def repair_font_links(folder: Path, root: Path) -> None:
    """Make absolute links relative, and add the two that the package makes when it is installed:
    without them glyphs are hinted differently from an installed Debian's."""
    for link in folder.iterdir():
        if link.is_symlink() and link.readlink().is_absolute():
            relink(link, root / link.readlink().relative_to("/"))
    for name in ("10-hinting-slight.conf", "70-no-bitmaps.conf"):
        available = root / "usr" / "share" / "fontconfig" / "conf.avail" / name
        if available.exists() and not (folder / name).exists():
            relink(folder / name, available)


def relink(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(target, link.parent))


def write_wrapper(folder: Path) -> None:
    root = folder / "root"
    executables = ("usr/lib/chromium/chromium-headless-shell", "usr/lib/chromium/chromium")
    executable = next(path for path in executables if (root / path).exists())
    plain, nested = ["lib/*-linux-*", "usr/lib/*-linux-*"], ["nss", "pulseaudio"]
    patterns = [*plain, *(f"{plain[1]}/{name}" for name in nested)]
    found = [path.relative_to(root) for pattern in patterns for path in sorted(root.glob(pattern))]
    libraries = ":".join(f"$here/root/{path}" for path in found)
    wrapper = folder / "chromium-headless-shell"
    wrapper.write_text(WRAPPER.format(libraries=libraries, executable=executable))
    wrapper.chmod(0o755)
    (folder / "fonts.conf").write_text(FONTS_CONF)


def check(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a command; its output is kept back, and shown in part where it fails."""
    return subprocess.run(
        list(command),
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DOWNLOAD_TIMEOUT_S,
        check=True,
    ).stdout


def explain(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line.strip() for line in (error.stdout or "").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "Error"))] or lines[-1:]
        return " ".join(errors[:2]) or f"exit code {error.returncode}"
    return str(error)
