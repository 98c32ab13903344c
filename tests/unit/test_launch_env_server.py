"""What the command line says of an env server is checked before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dart_gui.errors import ConfigError
from dart_gui.launch.env_server import ServerOptions, check


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("port", (-1, 65_536)),
        ("max_desktops", (0, -3)),
        ("spares", (-1,)),
        ("width", (0,)),
        ("height", (-720,)),
        ("memory_mb", (0,)),
    ],
)
def test_numbers_that_make_no_sense_are_refused(name: str, values: tuple[int, ...]) -> None:
    options = ServerOptions(folder=Path("/nowhere"))
    check(options)
    for value in values:
        with pytest.raises(ConfigError, match=rf"--[a-z-]+ must be from \d+ to \d+, got {value}"):
            check(replace(options, **{name: value}))
