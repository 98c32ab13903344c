"""The bearer token of a run's rollout service, for whoever serves or calls it."""

from __future__ import annotations

from pathlib import Path

from dart_gui.config import Config
from dart_gui.errors import AuthError


def read_token(run_dir: Path, config: Config) -> str:
    """The text of ``rollout.token_file``, else of ``token`` in the run's folder.

    Raises:
        AuthError: it cannot be read, or is empty.
    """
    path = Path(config.rollout.token_file or run_dir / "token")
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AuthError(
            f"cannot read the token of the rollout service from {path}: {error}. Start the run with "
            "`dart-gui train`, which makes one, or set rollout.token_file."
        ) from None
    if not token:
        raise AuthError(f"the token file {path} is empty: put a random text into it")
    return token
