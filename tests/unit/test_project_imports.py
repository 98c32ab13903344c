"""The arrows of docs/architecture.md, "Who may import whom", checked on the source itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src"
PACKAGE = "dart_gui"

FLAT_CORE = frozenset({"byte_cache", "types", "errors", "config", "files", "metrics", "registry"})

# Who may import what, besides itself and the flat core. A module has the rules of its longest
# prefix here, and its package's too. `main` modules put the parts of one process together.
MAY_IMPORT: dict[str, frozenset[str]] = {
    "agent": frozenset(),
    "env": frozenset(),
    "model": frozenset(),
    "rollout": frozenset(),
    "rollout.engines": frozenset({"agent", "model"}),
    "rollout.main": frozenset({"compat", "sessions"}),
    "sessions": frozenset({"rollout", "data.manager", "data.sampler"}),
    "compat": frozenset({"env", "rollout"}),
    "data": frozenset(),
    "runner": frozenset(
        {"agent", "env.protocol", "env.suites", "rollout.client", "rollout.token", "data.manager"}
    ),
    "runner.main": frozenset({"data.sampler", "data.pool"}),
    "train": frozenset(
        {"agent", "model", "data.manager", "data.records", "rollout.client", "rollout.token"}
    ),
    "train.parity": frozenset({"rollout.engines"}),
}
UNBOUND = frozenset({"cli", "__main__", "__init__", "launch", "fakes"})

# Where a heavy dependency may be imported.
HOMES: dict[str, frozenset[str]] = {
    "torch": frozenset({"model", "rollout.engines", "train"}),
    "transformers": frozenset({"model", "rollout.engines", "train"}),
    "peft": frozenset({"model"}),
    "safetensors": frozenset({"model", "rollout.engines", "train"}),
    "playwright": frozenset({"env"}),
    "miniwob": frozenset({"env"}),
    "Xlib": frozenset({"env.desktop"}),
    "mss": frozenset({"env.desktop"}),
    "docker": frozenset({"env.providers"}),
    "gymnasium": frozenset({"env"}),
    "matplotlib": frozenset({"launch"}),
    "tensorboard": frozenset({"launch"}),
    "sqlalchemy": frozenset({"data"}),
}

LIGHT_MODULES = (
    "types",
    "errors",
    "config",
    "metrics",
    "registry",
    "agent.agent",
    "env.protocol",
    "rollout.client",
    "data.manager",
    "runner.episode",
    "cli",
)
HEAVY = (
    "torch",
    "transformers",
    "playwright",
    "miniwob",
    "Xlib",
    "mss",
    "docker",
    "gymnasium",
    "matplotlib",
    "tensorboard",
)


def is_within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def imported_modules(source: str) -> Iterator[str]:
    """Absolute names of all that is imported, in functions and for type checking too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def allowed(module: str) -> frozenset[str]:
    rules = [rule for rule in MAY_IMPORT if is_within(module, rule)]
    return FLAT_CORE.union(*(MAY_IMPORT[rule] for rule in rules))


def violations(module: str, source: str) -> Iterator[str]:
    """Imports of ``module`` (relative to the package) that the rules do not allow."""
    top = module.split(".")[0]
    for name in imported_modules(source):
        head, _, inner = name.partition(".")
        if head in HOMES and not any(is_within(module, home) for home in HOMES[head]):
            yield f"{module} imports {name}"
        if head != PACKAGE or not inner or top in UNBOUND:
            continue
        if is_within(inner, top) or any(is_within(inner, rule) for rule in allowed(module)):
            continue
        # `from dart_gui.data import manager` and `from dart_gui import config` name a module; `from
        # dart_gui import __version__` names none.
        if (SRC / PACKAGE / inner.split(".")[0]).exists() or inner in UNBOUND:
            yield f"{module} imports {name}"


def source_modules() -> Iterator[tuple[str, str]]:
    for path in sorted((SRC / PACKAGE).rglob("*.py")):
        relative = path.relative_to(SRC / PACKAGE).with_suffix("")
        parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
        yield ".".join(parts) or "__init__", path.read_text(encoding="utf-8")


def test_no_module_imports_what_it_may_not() -> None:
    modules = list(source_modules())
    assert len(modules) > 30
    found = [text for module, source in modules for text in violations(module, source)]
    assert found == []


def test_every_package_has_a_rule() -> None:
    tops = {module.split(".")[0] for module, _ in source_modules()}
    assert tops <= FLAT_CORE | UNBOUND | set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("env.browser.miniwob", "from dart_gui.data.manager import DataManager"),
        ("data.manager", "def f():\n    import dart_gui.rollout.client"),
        ("rollout.router", "from dart_gui.agent.geometry import Geometry"),
        ("rollout.worker", "import torch.nn"),
        ("runner.main", "from dart_gui.env.browser.cluster import BrowserCluster"),
        ("runner.scheduler", "from dart_gui.env.browser.cluster import BrowserCluster"),
        ("runner.scheduler", "from dart_gui.rollout import router"),
        ("train.loop", "from dart_gui.rollout.engines.base import Engine"),
        ("agent.agent", "from dart_gui import fakes"),
        ("config", "from dart_gui.env import suites"),
        ("cli", "import torch"),
        ("launch.view", "from playwright.async_api import Page"),
    ],
)
def test_a_wrong_arrow_is_found(module: str, source: str) -> None:
    assert len(list(violations(module, source))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("env.browser.miniwob", "from dart_gui.env import suites\nfrom dart_gui.types import Task"),
        ("rollout.engines.transformers_engine", "import torch\nimport dart_gui.model.folder"),
        ("runner.main", "from dart_gui.env import suites"),
        ("runner.episode", "from dart_gui.env.protocol import Env"),
        ("train.parity", "from dart_gui.rollout.engines.base import Engine"),
        ("cli", "from dart_gui import __version__, launch"),
        ("agent.agent", "from dart_gui import config as config_module"),
    ],
)
def test_a_right_arrow_passes(module: str, source: str) -> None:
    assert list(violations(module, source)) == []


def run_without_heavy(code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in an interpreter in which the heavy packages cannot be imported."""
    block = (
        "import sys, importlib.abc\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {HEAVY!r}:\n"
        "            raise ImportError(f'{name} is not installed here')\n"
        "sys.meta_path.insert(0, Block())\n"
        f"sys.path.insert(0, {str(SRC)!r})\n"
    )
    return subprocess.run(
        [sys.executable, "-c", block + code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_core_imports_without_torch_and_browser() -> None:
    imports = "\n".join(f"import {PACKAGE}.{module}" for module in LIGHT_MODULES)
    done = run_without_heavy(imports)
    assert done.returncode == 0, done.stderr


def test_help_needs_neither_torch_nor_browser() -> None:
    # What makes --help start in under a second is that it loads none of these: a bound on the time
    # itself would fail on a busy machine for no fault of the code.
    code = "sys.argv = ['dart-gui', '--help']\nfrom dart_gui.cli import main\nsys.exit(main())"
    done = run_without_heavy(code)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


def test_the_command_line_loads_no_heavy_module() -> None:
    code = f"import sys, dart_gui.cli\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.path.insert(0, {str(SRC)!r})\n{code}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == "[]"
