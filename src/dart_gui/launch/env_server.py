"""The env server as a process: ``dart-gui env-server``."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from dart_gui import config as config_module
from dart_gui.compat.env_server import PublishedRoutes
from dart_gui.env.providers.docker import docker_provider
from dart_gui.env.providers.fake import FakeProvider
from dart_gui.env.providers.limits import Limits
from dart_gui.env.providers.protocol import Provider
from dart_gui.env.providers.sandbox import SandboxSpec
from dart_gui.env.providers.xvfb import XvfbProvider
from dart_gui.env.server.app import new_app
from dart_gui.env.server.registry import Registry
from dart_gui.env.server.service import EnvService
from dart_gui.env.server.tokens import Tokens, load_tokens, make_token
from dart_gui.errors import ConfigError, SetupError
from dart_gui.files import write_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What the command line says."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = 0
    provider: str = "xvfb"
    max_desktops: int = 4
    spares: int = 1  # booted, besides those
    width: int = 1280
    height: int = 720
    memory_mb: int = 2048
    tokens: Path | None = None
    keep_desktops: bool = False
    forward_host: str = ""  # interface of ports for published clients; empty for none
    overrides: Sequence[str] = ()  # ``env.docker_...=value``


def run(options: ServerOptions) -> int:
    """Serve until SIGTERM or SIGINT.

    ``server.json`` ({"url", "pid"}) is in the folder while the server answers.

    Raises:
        DartError: the options, the machine, or the folder is not as it must be.
    """
    check(options)
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=form)
    options.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if options.folder.stat().st_uid != os.getuid():
        raise ConfigError(
            f"the folder {options.folder} belongs to somebody else: give another --dir"
        )
    asyncio.run(_serve(options))
    return 0


def check(options: ServerOptions) -> None:
    """Raises ``ConfigError`` for a number that makes no sense."""
    bounds = {
        "--port": (options.port, 0, 65535),
        "--desktops": (options.max_desktops, 1, 10_000),
        "--spares": (options.spares, 0, 10_000),
        "--width": (options.width, 64, 16_384),
        "--height": (options.height, 64, 16_384),
        "--memory-mb": (options.memory_mb, 64, 1 << 24),
    }
    for name, (value, low, high) in bounds.items():
        if not low <= value <= high:
            raise ConfigError(f"{name} must be from {low} to {high}, got {value}")


async def _serve(options: ServerOptions) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    service = EnvService(
        make_provider(options),
        read_tokens(options),
        Registry(options.folder),
        max_desktops=options.max_desktops,
        spares=options.spares,
    )
    await service.start()
    runner = web.AppRunner(_new_app(service, options), access_log=None, shutdown_timeout=2)
    try:
        await runner.setup()
        url = await _listen(runner, options)
        _write_status(options.folder, url)
        for warning in service.status().warnings:
            log.warning("%s", warning)
        log.info("serving %s at %s; dashboard: %s/dashboard", options.provider, url, url)
        await stop.wait()
    finally:
        (options.folder / "server.json").unlink(missing_ok=True)
        await runner.cleanup()
        await service.stop(keep_desktops=options.keep_desktops)


def _new_app(service: EnvService, options: ServerOptions) -> web.Application:
    app = new_app(service)
    PublishedRoutes(service, forward_host=options.forward_host).add_to(app)
    return app


async def _listen(runner: web.AppRunner, options: ServerOptions) -> str:
    site = web.TCPSite(runner, options.host, options.port)
    try:
        await site.start()
    except OSError as error:
        raise SetupError(
            f"cannot listen on {options.host}:{options.port}: {error.strerror or error}"
        ) from None
    host, port = runner.addresses[0][:2]
    return f"http://{host}:{port}"


def make_provider(options: ServerOptions) -> Provider:
    """Raises ``ConfigError`` for a name that is none, or settings of another provider."""
    root, width, height = options.folder / "d", options.width, options.height
    if options.provider == "docker":
        return docker_provider(_docker_config(options), root)
    if options.overrides:
        raise ConfigError(f"{options.overrides[0]} is for --provider docker")
    if options.provider == "fake":
        return FakeProvider(root, width=width, height=height)
    if options.provider == "xvfb":
        # They outlive a server that is killed: the next one takes them up.
        spec = SandboxSpec(dies_with_parent=False)
        limits = Limits(memory_mb=options.memory_mb)
        return XvfbProvider(root, width=width, height=height, spec=spec, limits=limits)
    raise ConfigError(f"there is no provider {options.provider!r}; there are: xvfb, docker, fake")


def _docker_config(options: ServerOptions) -> config_module.EnvConfig:
    if wrong := [item for item in options.overrides if not item.startswith("env.docker_")]:
        raise ConfigError(f"an env server takes overrides of env.docker_... only, got {wrong[0]}")
    sizes = {
        "desktop_width": options.width,
        "desktop_height": options.height,
        "desktop_memory_mb": options.memory_mb,
    }
    return config_module.load(None, options.overrides).env.model_copy(update=sizes)


def read_tokens(options: ServerOptions) -> Tokens:
    if options.tokens is not None:
        return load_tokens(options.tokens)
    path = options.folder / "token"
    log.info("the token is in %s", path)
    return make_token(path, limit=options.max_desktops)


def _write_status(folder: Path, url: str) -> None:
    write_whole(folder / "server.json", json.dumps({"url": url, "pid": os.getpid()}))
