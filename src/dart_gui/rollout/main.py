"""The rollout process of a run: what it reads and writes in the run's folder, and its signals."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dart_gui.config import Config, load
from dart_gui.errors import DataError
from dart_gui.files import write_whole
from dart_gui.rollout.service import serve
from dart_gui.rollout.token import read_token
from dart_gui.types import WeightsRef

log = logging.getLogger(__name__)


def run(run_dir: Path) -> int:
    """Serve the run until SIGTERM or SIGINT; returns the exit status.

    ``status/rollout.json`` ({"url", "pid"}) appears when the service is ready.
    ``status/weights.json`` keeps the newest published weights, with which a restart comes up.

    Raises:
        DartError: the configuration, the token, the port or the model is wrong.
    """
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=form)
    config = load(run_dir / "config.toml")
    asyncio.run(_until_signal(run_dir, config, read_token(run_dir, config)))
    return 0


async def _until_signal(run_dir: Path, config: Config, token: str) -> None:
    serving = asyncio.create_task(_serve(run_dir, config, token))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    await asyncio.wait({serving})
    if not serving.cancelled():
        serving.result()


async def _serve(run_dir: Path, config: Config, token: str) -> None:
    status_dir = run_dir / "status"
    weights_path = status_dir / "weights.json"
    status_path = status_dir / "rollout.json"
    async with serve(
        config,
        token=token,
        weights=read_weights(weights_path),
        preferred_port=_last_port(status_path),
        on_publish=lambda weights: _remember(weights_path, weights),
    ) as running:
        write_json(status_path, {"url": running.url, "pid": os.getpid()})
        log.info("serving at %s", running.url)
        await running.wait()


def _remember(path: Path, weights: WeightsRef) -> None:
    """A disk that is full costs the memory of these weights, not their service: after a restart we
    would come up with older ones, and the trainer tells a service that it finds anew."""
    try:
        write_json(path, asdict(weights))
    except DataError as error:
        log.warning("%s", error)


def read_weights(path: Path) -> WeightsRef | None:
    """Raises:
    DataError: the file is there and is not what :func:`run` writes.
    """
    if not path.exists():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        return WeightsRef(policy_version=int(tree["policy_version"]), path=str(tree["path"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} does not name the newest weights: {error!r}. Delete it to serve model.path "
            "until the trainer publishes again."
        ) from None


def _last_port(path: Path) -> int:
    """The port before a restart: clients that know it need not be told of another one."""
    try:
        return urlsplit(json.loads(path.read_text(encoding="utf-8"))["url"]).port or 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Replace the file in one step, so that no reader ever sees half of it.

    Raises:
        DataError: it cannot be written.
    """
    write_whole(path, json.dumps(tree), sync=True)
