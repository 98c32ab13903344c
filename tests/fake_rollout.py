"""A rollout service over fake engines in real worker processes, and a client that asks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dart_gui.config import Config, from_dict
from dart_gui.rollout.client import RolloutClient
from dart_gui.types import Completion, SamplingParams

TOKEN = "a-token-of-this-test"


def folder(path: Path, **script: Any) -> str:
    """A model of the engine ``fake`` that follows ``script``."""
    path.mkdir(exist_ok=True)
    (path / "fake_engine.json").write_text(json.dumps(script))
    return str(path)


def config(model_path: str, **rollout: Any) -> Config:
    settings = {"engine": "fake", "num_workers": 2, "request_timeout_s": 30}
    tree = {"rollout": settings | rollout, "model": {"path": model_path}}
    return from_dict(tree, source="test")


async def ask(client: RolloutClient, number: int) -> Completion:
    messages = [{"role": "user", "content": f"request {number}"}]
    sampling = SamplingParams(temperature=1.0, max_tokens=64, seed=number)
    return await client.complete(messages, {}, sampling, trajectory_id=f"t{number % 7}")
