"""A desktop in a container of the image that `make test-docker` has made."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from dart_gui.config import EnvConfig
from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.providers.docker import docker_provider


@asynccontextmanager
async def container_desktop(folder: Path) -> AsyncIterator[GuestClient]:
    config = EnvConfig(
        docker_host=os.environ["DART_DOCKER_HOST"], docker_image=os.environ["DART_DOCKER_IMAGE"]
    )
    provider = docker_provider(config, folder)
    await provider.start()
    desktop = await provider.create("one")
    client = GuestClient(desktop.address)
    try:
        yield client
    finally:
        await client.close()
        await provider.destroy("one")
        await provider.close()
