"""The suite ``desktop-mini``: small tasks on real applications, in OSWorld's JSON, offline."""

from __future__ import annotations

from pathlib import Path

from dart_gui.env.desktop.tasks import TaskFolder

NAME = "desktop-mini"
FOLDER = Path(__file__).parent
VERSION = "desktop-mini.v2"
"""Changes whenever the same (task, seed, actions) would give other screens or rewards."""


def mini_tasks() -> TaskFolder:
    return TaskFolder(FOLDER, name=NAME)
