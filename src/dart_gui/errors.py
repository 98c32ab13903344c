"""The exception tree. Every expected failure is a ``DartError`` whose text says what was expected,
what came, and what to do; the command line prints that text and nothing else.

DartError
├── ConfigError      the configuration, a path or an argument is wrong
├── SetupError       the machine lacks something: a browser, a port, a model folder
├── DataError        the ledger or a blob is not what it should be
├── AuthError        a token is missing or wrong
├── EnvError         the environment broke: infrastructure, never the policy's fault
└── PolicyError      the rollout service failed to answer: infrastructure
    └── ContextLengthError   the prompt does not fit the context: the episode ends, nothing is broken
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class DartError(Exception):
    """Base of every failure that we expect and explain."""


class ConfigError(DartError):
    pass


class SetupError(DartError):
    pass


class DataError(DartError):
    pass


class AuthError(DartError):
    pass


class EnvError(DartError):
    pass


class PolicyError(DartError):
    pass


class ContextLengthError(PolicyError):
    pass


@contextmanager
def boundary(kind: type[DartError], what: str) -> Iterator[None]:
    """Attribute whatever goes wrong inside to ``kind``; an error already typed passes through.

    >>> with boundary(EnvError, "taking a screenshot"):
    ...     raise RuntimeError("target closed")
    Traceback (most recent call last):
    dart_gui.errors.EnvError: taking a screenshot: RuntimeError: target closed
    """
    try:
        yield
    except DartError:
        raise
    except Exception as error:  # boundary: the one place where foreign errors get our type
        raise kind(f"{what}: {type(error).__name__}: {error}") from error
