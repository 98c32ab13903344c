"""Where a configuration comes from: TOML, dotted overrides; and back to TOML."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dart_gui.config.tree import Config
from dart_gui.errors import ConfigError


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read ``path`` (None for the defaults) and apply ``section.key=value`` overrides.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, a value is refused.
    """
    tree: dict[str, Any] = {} if path is None else _read_toml(Path(path))
    for override in overrides:
        _apply_override(tree, override)
    return from_dict(tree, source=str(path) if path else "the defaults")


def from_dict(tree: Mapping[str, Any], *, source: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(map(_explain, error.errors()))) from None


def dump(config: Config) -> str:
    """The resolved tree as TOML."""
    lines: list[str] = []
    for section, values in config.model_dump(mode="json").items():
        lines += [f"[{section}]"]
        lines += [f"{key} = {_toml_value(value)}" for key, value in values.items()]
        lines += [""]
    return "\n".join(lines)


def _toml_value(value: Any) -> str:
    """JSON is TOML but for two things: surrogate pairs, and DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror or error}. "
            "Give the path of a TOML file, such as configs/miniwob-tiny.toml."
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, eq, text = override.partition("=")
    section, dot, key = dotted.partition(".")
    if not (eq and dot and section and key):
        raise ConfigError(
            f"the override {override!r} is not of the form section.key=value, e.g. train.lr=1e-4"
        )
    table = tree.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{section} is not a table, so {dotted} cannot be set")
    table[key] = _override_value(text)


def _override_value(text: str) -> Any:
    """TOML where it parses as TOML (numbers, booleans, lists, quoted text), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(error: Any) -> str:
    path = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        nearest = _nearest(error["loc"])
        hint = f"; did you mean {nearest}?" if nearest else ""
        return f"unknown key {path}{hint}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {message} (got {error['input']!r})" if path else message


def _nearest(loc: tuple[str | int, ...]) -> str | None:
    """The known key most like the unknown one: first within its section, then anywhere."""
    known = {
        f"{section}.{key}"
        for section, field in Config.model_fields.items()
        for key in field.annotation.model_fields  # type: ignore[union-attr]
    }
    wanted = ".".join(map(str, loc))
    if len(loc) == 1:
        return next(iter(difflib.get_close_matches(wanted, list(Config.model_fields))), None)
    key_only = {name.split(".")[1]: name for name in sorted(known)}
    if loc[-1] in key_only:
        return key_only[str(loc[-1])]
    same_section = [name for name in known if name.startswith(f"{loc[0]}.")]
    for names in (same_section, list(known)):
        if match := difflib.get_close_matches(wanted, sorted(names), n=1):
            return match[0]
    match = difflib.get_close_matches(str(loc[-1]), list(key_only), n=1)
    return key_only[match[0]] if match else None
