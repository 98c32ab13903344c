"""Settings of all tests."""

import importlib.util
import shutil

import pytest
from hypothesis import settings

# A shared machine pauses a process for longer than the default deadline of 200 ms.
settings.register_profile("dart-gui", deadline=None)
settings.load_profile("dart-gui")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of real desktops are skipped where there are none, and say what is missing."""
    if item.get_closest_marker("desktop") and (missing := missing_for_desktops()):
        pytest.skip(f"no desktops: {', '.join(missing)} (python3 scripts/setup_desktop.py)")


def missing_for_desktops() -> list[str]:
    programs = ("bwrap", "Xvfb", "openbox", "xterm", "setpriv", "prlimit")
    missing = [program for program in programs if shutil.which(program) is None]
    return missing + [name for name in ("Xlib", "mss") if importlib.util.find_spec(name) is None]
