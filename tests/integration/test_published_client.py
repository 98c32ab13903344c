"""DART's own client of its env server, over ours. It is not shipped: DART_PUBLISHED names a checkout of
GUI-Docker-Env, DART_OSWORLD a Python with its dependencies (``scripts/setup_osworld.py``, and in that
environment ``pip install docker psutil filelock omegaconf gymnasium``)."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
from aiohttp import web

from dart_gui.compat.env_server import PublishedRoutes
from dart_gui.env.providers.xvfb import XvfbProvider
from dart_gui.env.server.app import new_app
from dart_gui.env.server.registry import Registry
from dart_gui.env.server.service import EnvService
from dart_gui.env.server.tokens import Token, Tokens

PROGRAM = Path(__file__).parents[1] / "published_client.py"
DART = Token(name="dart", token="dart-dart-dart-dart", limit=1)


@pytest.mark.desktop
@pytest.mark.slow
async def test_an_episode_by_the_published_client(tmp_path_factory: pytest.TempPathFactory) -> None:
    checkout, python = os.environ.get("DART_PUBLISHED"), os.environ.get("DART_OSWORLD")
    if not checkout or not python:
        pytest.skip("DART_PUBLISHED and DART_OSWORLD name no published client and its Python")
    if importlib.util.find_spec("pyautogui") is None:
        pytest.skip("the published client acts by pyautogui, which this environment lacks")
    folder = tmp_path_factory.mktemp("e")
    provider = XvfbProvider(folder / "d", width=1280, height=720)
    service = EnvService(provider, Tokens([DART]), Registry(folder), max_desktops=1, spares=1)
    await service.start()
    app = new_app(service)
    PublishedRoutes(service, forward_host="127.0.0.1").add_to(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        client = await asyncio.create_subprocess_exec(
            *(python, str(PROGRAM), f"http://127.0.0.1:{runner.addresses[0][1]}"),
            cwd=checkout,
            stdout=asyncio.subprocess.PIPE,
            stderr=sys.stderr,
        )
        said, _ = await client.communicate()
        assert client.returncode == 0
        seen = json.loads(said.decode().splitlines()[-1])
        assert service.status().num_leased == 0
    finally:
        await runner.cleanup()
        await service.stop()
    assert len(set(seen.pop("ports"))) == 3
    assert seen.pop("screenshot") > 1000
    assert seen == {
        "platform": "Linux",
        "size": {"width": 1280, "height": 720},
        "before": 0.0,
        "after": 1.0,
        "is_another": True,
        "again": 0.0,
    }
