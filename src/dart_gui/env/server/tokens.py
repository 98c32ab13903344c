"""Who may ask the server for desktops: tokens with a name, a limit, and perhaps more rights."""

from __future__ import annotations

import hmac
import os
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dart_gui.errors import AuthError, ConfigError


class Token(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    token: str = Field(min_length=16)
    limit: int = Field(ge=0)  # desktops at once
    admin: bool = False  # sees and stops all, and changes limits


@dataclass(frozen=True, slots=True)
class ChangedLimit:
    """A limit that was set while the server ran, and the configured one that it stands for."""

    limit: int
    configured: int


class Tokens:
    """The tokens of a server, by name and by secret."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = {token.name: token for token in tokens}
        self._configured = {token.name: token.limit for token in tokens}
        if len(self._tokens) < len(tokens) or len({t.token for t in tokens}) < len(tokens):
            raise ConfigError("the names and the secrets of tokens must each be unique")

    def find(self, secret: str) -> Token:
        """Raises ``AuthError`` where no token has this secret; all are compared, in equal time."""
        given = secret.encode("utf-8", "replace")
        found = [t for t in self._tokens.values() if hmac.compare_digest(t.token.encode(), given)]
        if not found:
            raise AuthError("a valid token is required: Authorization: Bearer TOKEN")
        return found[0]

    def get(self, name: str) -> Token | None:
        return self._tokens.get(name)

    def all(self) -> list[Token]:
        return list(self._tokens.values())

    def set_limit(self, name: str, limit: int) -> Token:
        """Raises ``ConfigError`` for a name that is none, or a limit below 0."""
        token = self._tokens.get(name)
        if token is None or limit < 0:
            raise ConfigError(f"there is no token {name!r} to give the limit {limit}")
        self._tokens[name] = token.model_copy(update={"limit": limit})
        return self._tokens[name]

    def changed_limits(self) -> dict[str, ChangedLimit]:
        """Those that differ from the configuration, by the name of their token."""
        return {
            name: ChangedLimit(token.limit, self._configured[name])
            for name, token in self._tokens.items()
            if token.limit != self._configured[name]
        }

    def restore_limits(self, limits: Mapping[str, ChangedLimit]) -> None:
        """Those of an earlier server, but of tokens that are gone, or whose configured limit is another
        now: who changed the configuration last is right."""
        for name, changed in limits.items():
            if self._configured.get(name) == changed.configured:
                self.set_limit(name, changed.limit)


def load_tokens(path: Path) -> Tokens:
    """Tables ``[[token]]`` of a TOML file.

    Raises:
        ConfigError: it cannot be read, or is not that; or others than its owner may read it.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} holds secrets and others may read it: chmod 600 {path}")
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
        return Tokens([Token.model_validate(entry) for entry in tree["token"]])
    except (OSError, KeyError, TypeError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigError(
            f"cannot read tokens from {path}: {error}. Expected tables [[token]] with name, token "
            "(16 characters or more), limit and admin"
        ) from None


def make_token(path: Path, *, limit: int) -> Tokens:
    """One administrator's token, kept in ``path`` and made where that is missing."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    secret = path.read_text(encoding="ascii").strip()
    return Tokens([Token(name="admin", token=secret, limit=limit, admin=True)])
