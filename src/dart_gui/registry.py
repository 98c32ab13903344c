"""One way to name a suite or an agent, whether it is ours, installed beside us, or a file of yours.

A reference is

- a name: a built-in one, or an entry point that an installed package declares in our group;
- ``package.module:object``: anything that can be imported;
- ``folder/file.py:object``: a Python file, relative to the working directory. Its folder is searched
  for what the file imports, after everything else.

Nothing is imported but what the reference names: the names of entry points are read from the
metadata of the installed packages.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from dart_gui.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Registry:
    """The references of one kind of object.

    ``what`` and ``key`` are for the errors: the kind, and the configuration key that names it.
    """

    what: str
    key: str
    group: str  # of entry points
    builtin: Mapping[str, str]  # name -> package.module:object

    def known(self) -> dict[str, str]:
        """Name -> ``package.module:object`` of all that has a name; a built-in name stays ours."""
        installed = {point.name: point.value for point in entry_points(group=self.group)}
        return {**installed, **self.builtin}

    def load(self, reference: str) -> object:
        """What ``reference`` names.

        Raises:
            ConfigError: there is no such name, module, file or object, or importing it failed.
        """
        place = reference if ":" in reference else self._place_of(reference)
        source, _, path = place.rpartition(":")
        found: object = self._import(source, reference)
        for part in path.split("."):
            if not hasattr(found, part):
                near = difflib.get_close_matches(part, dir(found), n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ConfigError(f"{self._named(reference)}: {source} has no {part!r}{hint}")
            found = getattr(found, part)
        return found

    def _named(self, reference: str) -> str:
        return f"{self.key} = {reference!r}"

    def _place_of(self, name: str) -> str:
        known = self.known()
        if name in known:
            return known[name]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"there is no {self.what} {name!r}{hint}. The {self.what}s are: "
            f"{', '.join(sorted(known))}; for one of your own, {self.key} is "
            "package.module:object or folder/file.py:object"
        )

    def _import(self, source: str, reference: str) -> ModuleType:
        try:
            return _from_file(Path(source)) if source.endswith(".py") else _from_name(source)
        except ConfigError as error:
            raise ConfigError(f"{self._named(reference)}: {error}") from None
        except Exception as error:  # whatever a module of somebody else's raises while it loads
            raise ConfigError(
                f"{self._named(reference)}: importing {source} failed: "
                f"{type(error).__name__}: {error}"
            ) from error


def absolute(reference: str) -> str:
    """``reference`` in the form that means the same in every working directory."""
    source, colon, path = reference.rpartition(":")
    return f"{Path(source).absolute()}:{path}" if colon and source.endswith(".py") else reference


def _from_name(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there; what it imports is not
        raise ConfigError(
            f"there is no module {error.name}: install its package, or name the file, as in "
            f"{name.rpartition('.')[2]}.py:object"
        ) from None


def _from_file(path: Path) -> ModuleType:
    """The module of a file; loaded once in a process."""
    path = path.absolute()
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    name = f"_dart_gui_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
