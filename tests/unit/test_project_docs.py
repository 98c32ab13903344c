"""The documents, the pins and the commands agree with the code."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dart_gui

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "docs/cluster.md",
    "docs/rollout.md",
    "docs/migrating.md",
    "docs/desktops.md",
    "docs/curation.md",
    "docs/own-tasks.md",
    "examples/own_suite/README.md",
)
# A path of the repository in a document: at least one folder that exists at its top.
PATH = re.compile(r"(?:src|tests|scripts|docs|configs|\.ci)/[\w./-]*\w")


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name: version for name, version in pairs}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [item for extra in project["optional-dependencies"].values() for item in extra]
    named = [Requirement(text) for text in [*project["dependencies"], *extras]]
    return [requirement for requirement in named if requirement.name != project["name"]]


def test_configuration_document_is_current() -> None:
    document = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert document == load_script("config_docs").render(), "run `make docs`"


def test_configuration_document_names_types_bounds_and_defaults() -> None:
    text = load_script("config_docs").render()
    assert "| `data.group_size` | int, >= 2 | `8` | Attempts at one (task_id, seed)" in text
    assert '| `agent.trim` | `"slide"` or `"block"` | `"slide"` |' in text
    assert "| `train.betas` | list of 2 float | `[0.9, 0.99]` |" in text
    assert "- `runner.num_slots > env.num_envs`" in text


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_in_a_document_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    here = (ROOT / document).parent
    missing = [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    missing += [link for link in links if not (here / link).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_in_a_document_exists(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^ {4})make ([a-z-]+)", text, re.MULTILINE))
    assert named <= targets


def test_changelog_names_this_version() -> None:
    assert dart_gui.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    versions = {canonicalize_name(name): version for name, version in pins().items()}
    wrong = [
        str(requirement)
        for requirement in requirements()
        if not requirement.specifier.contains(
            versions.get(canonicalize_name(requirement.name), "0")
        )
    ]
    assert wrong == []


def test_constraints_are_plain_pins() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    names = [line.split("==")[0] for line in lines if not line.startswith("#")]
    assert names == sorted(set(names))
    plain = re.compile(r"#.*|[a-z0-9-]+==[0-9a-z.]+")
    assert [line for line in lines if not plain.fullmatch(line)] == []


def test_the_core_needs_no_heavy_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {Requirement(text).name for text in project["dependencies"]}
    assert core.isdisjoint({"torch", "transformers", "playwright", "miniwob", "matplotlib"})
    assert project["optional-dependencies"]["local"] == [
        "dart-gui[train,browser,desktop,docker,report]"
    ]


def test_ci_runs_what_a_person_runs() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^make .*check$", text, re.MULTILINE)
    assert re.search(r"^make .*test$", text, re.MULTILINE)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
