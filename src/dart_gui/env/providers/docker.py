"""Desktops in containers, of Docker or by its socket of Podman, from any image that serves the guest API.

Labels say whose a container is: only what has ours is ever looked at, so that a provider that starts
again finds its desktops, and nobody else's is touched.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from dart_gui.config import EnvConfig
from dart_gui.env.desktop.address import Address
from dart_gui.env.desktop.client import GuestClient
from dart_gui.env.desktop.env import picture_size
from dart_gui.env.providers.containers import HOW_TO_GET, ContainerSpec, container_spec
from dart_gui.env.providers.private import PrivateProvider
from dart_gui.env.providers.protocol import Desktop, Usage
from dart_gui.errors import EnvError, SetupError, boundary

OWNER, DESKTOP = "dart-gui.owner", "dart-gui.desktop"
INSTALL = "pip install 'dart-gui[docker]'"
ANSWER_S = 120.0  # of the daemon
POLL_S = 0.2
END_S = 30.0
SMALL_MB = 16
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_LOCAL = ("unix://", "http+unix://", "tcp://127.0.0.1:", "tcp://localhost:")
T = TypeVar("T")


class DockerProvider:
    """``owner`` tells this provider's containers from others: the same one after a restart.

    The guest's port is published on the loopback interface of this machine alone, on a free port.
    """

    name = "docker"

    def __init__(
        self,
        spec: ContainerSpec,
        *,
        owner: str,
        host: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._spec = spec
        self._owner = owner
        self._short = hashlib.sha256(owner.encode()).hexdigest()[:8]
        self._host = host
        self._clock = clock
        self._docker: Any = None
        self._is_podman = False
        self._booting: set[str] = set()

    async def start(self) -> None:
        if self._docker is None:
            self._docker = await asyncio.to_thread(connect, self._host)
        with boundary(SetupError, "preparing Docker for desktops"):
            await asyncio.to_thread(self._prepare)

    def warnings(self) -> list[str]:
        found = list(self._spec.warnings)
        if not self._spec.disk_mb:
            found.append("no limit on what a desktop writes to the daemon's disk")
        if self._spec.network or self._is_podman:
            found.append("desktops reach each other over their network")
        return found

    async def create(self, desktop_id: str) -> Desktop:
        began = self._clock()
        if not _ID.fullmatch(desktop_id):
            raise ValueError(f"a desktop id is letters, digits, _ and -; got {desktop_id!r}")
        known = await self._call("looking for the desktop", self._own, desktop_id)
        if known or desktop_id in self._booting:
            raise FileExistsError(f"there is a desktop {desktop_id!r} already")
        self._booting.add(desktop_id)
        try:
            container = await self._started(desktop_id)
            await self._await_ready(desktop_id, container)
        except BaseException:
            await self.destroy(desktop_id)
            raise
        finally:
            self._booting.discard(desktop_id)
        return self._describe(container, boot_s=self._clock() - began)

    async def destroy(self, desktop_id: str) -> None:
        await self._call(f"ending the desktop {desktop_id}", self._remove, desktop_id)

    async def find(self) -> list[Desktop]:
        booting = set(self._booting)
        found = await self._call("looking for desktops", self._own)
        ended = _ended(found) - booting - self._booting
        if ended:
            # An answer is old when it comes: one that does not run in it may have been booting.
            found = await self._call("looking for desktops", self._own)
            ended &= _ended(found)
        booted = _named(found) - booting - self._booting - (_ended(found) - ended)
        return sorted(
            (self._describe(one) for one in found if one.labels[DESKTOP] in booted),
            key=lambda desktop: desktop.desktop_id,
        )

    async def usage(self, desktop_id: str) -> Usage | None:
        return await self._call("measuring a desktop", self._measure, desktop_id)

    async def close(self) -> None:
        if self._docker is None:
            return
        try:
            await self._call("letting go of Docker", self._remove_network)
        finally:
            self._docker.close()
            self._docker = None

    async def _call(self, what: str, work: Callable[..., T], *args: str) -> T:
        """Raises ``EnvError`` for whatever the daemon answers."""
        if self._docker is None:
            raise EnvError(f"{what}: the provider is not running")
        with boundary(EnvError, what):
            return await asyncio.to_thread(work, *args)

    async def _started(self, desktop_id: str) -> Any:
        what = f"starting the desktop {desktop_id}"
        task = asyncio.ensure_future(self._call(what, self._launch, desktop_id))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # A thread cannot be stopped: what it makes must be there before it can be removed.
            await asyncio.gather(task, return_exceptions=True)
            raise

    async def _await_ready(self, desktop_id: str, container: Any) -> None:
        """Until the guest gives a picture of its screen, which every guest server can."""
        what = f"the desktop {desktop_id}"
        seen: Exception | None = None
        try:
            async with asyncio.timeout(self._spec.boot_timeout_s):
                while True:
                    await self._call(what, container.reload)
                    if not container.attrs["State"]["Running"]:
                        code = container.attrs["State"]["ExitCode"]
                        raise EnvError(f"{what} ended with exit code {code} before it was ready")
                    if (seen := await _why_not_ready(self._address(container), what)) is None:
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            limit = f"{self._spec.boot_timeout_s:g} s"
            text = f"{what} was not ready within {limit}: {seen or 'no answer'}"
            raise EnvError(f"{text}. {await self._said(container)}") from None
        except EnvError as error:
            raise EnvError(f"{error}. {await self._said(container)}") from None

    async def _said(self, container: Any) -> str:
        log: bytes = await self._call("reading its log", lambda: container.logs(tail=20))
        return f"It said: {log.decode(errors='replace').strip()[-500:] or 'nothing'}"

    def _describe(self, container: Any, *, boot_s: float = 0.0) -> Desktop:
        is_running = container.attrs["State"]["Running"]
        return Desktop(
            desktop_id=container.labels[DESKTOP],
            address=self._address(container) if is_running else Address(),
            created_at=datetime.fromisoformat(container.attrs["Created"]).timestamp(),
            boot_s=boot_s,
            is_running=is_running,
        )

    def _address(self, container: Any) -> Address:
        urls = {
            port: f"http://127.0.0.1:{published[0]['HostPort']}"
            for port in (self._spec.guest_port, *self._spec.ports)
            if (published := container.attrs["NetworkSettings"]["Ports"].get(f"{port}/tcp"))
        }
        if self._spec.guest_port not in urls:
            raise EnvError(f"the container {container.name} publishes no port: was it stopped?")
        return Address(url=urls.pop(self._spec.guest_port), ports=urls)

    # --- in a thread: the SDK waits for the daemon -----------------------------------------------

    def _prepare(self) -> None:
        find_image(self._docker, self._spec.image)
        names = [part.get("Name", "") for part in self._docker.version().get("Components") or []]
        self._is_podman = any("podman" in name.lower() for name in names)
        if not self._spec.network and not self._networks():
            options = {} if self._is_podman else {"com.docker.network.bridge.enable_icc": "false"}
            self._docker.networks.create(
                self._network, driver="bridge", labels={OWNER: self._owner}, options=options
            )

    @property
    def _network(self) -> str:
        return self._spec.network or f"dart-{self._short}"

    def _networks(self) -> list[Any]:
        return list(self._docker.networks.list(filters={"label": f"{OWNER}={self._owner}"}))

    def _remove_network(self) -> None:
        """Kept as long as a desktop that outlives us is in it."""
        for network in self._networks() if not self._own() else []:
            network.remove()

    def _own(self, desktop_id: str | None = None) -> list[Any]:
        labels = [f"{OWNER}={self._owner}"]
        labels += [] if desktop_id is None else [f"{DESKTOP}={desktop_id}"]
        found = self._docker.containers.list(
            all=True, filters={"label": labels}, ignore_removed=True
        )
        return [container for container in found if container.labels.get(OWNER) == self._owner]

    def _launch(self, desktop_id: str) -> Any:
        container = self._docker.containers.create(
            self._spec.image,
            name=f"dart-{self._short}-{desktop_id}",
            labels={OWNER: self._owner, DESKTOP: desktop_id},
            **container_options(self._spec, self._network),
        )
        container.start()
        container.reload()
        return container

    def _remove(self, desktop_id: str) -> None:
        from docker.errors import APIError, NotFound

        for container in self._own(desktop_id):
            try:
                container.remove(force=True, v=True)
            except NotFound:
                continue
            except APIError as error:
                if error.status_code != 409:
                    raise
                _await_removed(container)  # by somebody else, as by a second call

    def _measure(self, desktop_id: str) -> Usage | None:
        for container in self._own(desktop_id):
            if not container.attrs["State"]["Running"]:
                continue
            stats = container.stats(stream=False, one_shot=True)
            memory = stats["memory_stats"]
            cached = memory.get("stats", {}).get("inactive_file", 0)
            return Usage(
                memory_bytes=memory.get("usage", 0) - cached,
                cpu_s=stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9,
                num_processes=stats["pids_stats"].get("current", 0),
            )
        return None


def _named(containers: list[Any]) -> set[str]:
    return {container.labels[DESKTOP] for container in containers}


def _ended(containers: list[Any]) -> set[str]:
    return _named([one for one in containers if not one.attrs["State"]["Running"]])


async def _why_not_ready(address: Address, what: str) -> EnvError | None:
    client = GuestClient(address, what=what)
    try:
        picture_size((await client.screenshot(cursor=False)).png)
    except EnvError as error:
        return error
    finally:
        await client.close()
    return None


def container_options(spec: ContainerSpec, network: str) -> dict[str, Any]:
    """Keyword arguments of the SDK's ``containers.create``."""
    confined: dict[str, Any] = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges"]}
    return {
        "hostname": "desktop",
        "environment": dict(item.split("=", 1) for item in spec.env),  # the last of a name counts
        "volumes": list(spec.volumes),
        "devices": [f"{path}:{path}:rwm" for path in spec.devices],
        "cap_add": list(spec.privileges),
        "mem_limit": f"{spec.memory_mb}m",
        "memswap_limit": f"{spec.memory_mb}m",  # memory and swap together
        "nano_cpus": int(spec.cpus * 1e9),
        "pids_limit": spec.max_processes,
        "shm_size": f"{spec.shm_mb}m",
        "network": network,
        "ports": {f"{port}/tcp": ("127.0.0.1", None) for port in (spec.guest_port, *spec.ports)},
        "log_config": {"Type": "json-file", "Config": {"max-size": "10m"}},
        **(confined if spec.is_confined else {}),
        **(_in_memory(spec.disk_mb) if spec.disk_mb else {}),
    }


def _in_memory(disk_mb: int) -> dict[str, Any]:
    """All that can be written, so that it ends at a size, and the memory limit counts it.

    The engines keep the rights that the folder has in the image, whatever mode is asked for.
    """
    sizes = {"/home": disk_mb, "/tmp": (disk_mb + 1) // 2, "/var/tmp": SMALL_MB, "/run": SMALL_MB}
    options = "rw,exec,nosuid,nodev,mode=1777"
    tmpfs = {path: f"{options},size={size}m" for path, size in sizes.items()}
    return {"read_only": True, "tmpfs": tmpfs}


def _await_removed(container: Any) -> None:
    from docker.errors import NotFound

    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline:
        try:
            container.reload()
        except NotFound:
            return
        time.sleep(POLL_S)
    raise EnvError(f"the container {container.name} was not removed within {END_S:g} s")


def connect(host: str = "") -> Any:
    """A client of the daemon at ``host``, or of the environment's.

    Raises:
        SetupError: there is no SDK, no daemon that answers, or one on another machine.
    """
    if importlib.util.find_spec("docker") is None:
        raise SetupError(f"desktops in containers need Docker's package for Python: {INSTALL}")
    import docker

    where = host or os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if not where.startswith(_LOCAL):
        raise SetupError(
            f"the daemon {where} is on another machine, where the guests' ports are on its loopback "
            "interface: run `dart-gui env-server --provider docker` there, and name it in env.servers"
        )
    environment = {**os.environ, "DOCKER_HOST": where}
    try:
        _knock(where)
        return docker.from_env(environment=environment, timeout=int(ANSWER_S))
    except (docker.errors.DockerException, OSError) as error:
        raise SetupError(
            f"no Docker or Podman answers at {where}: {error}. Start one (systemctl start docker; "
            "podman system service), or give its socket as env.docker_host or DOCKER_HOST"
        ) from None


def _knock(where: str) -> None:
    """Raises ``OSError`` where nobody listens: the SDK would leave its socket open."""
    path = where.removeprefix("http+").removeprefix("unix://")
    if path != where:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(path)


def find_image(client: Any, image: str) -> None:
    """Raises ``SetupError`` where the daemon lacks it: a pull of gigabytes is for a person to start."""
    from docker.errors import ImageNotFound

    try:
        client.images.get(image)
    except ImageNotFound:
        advice = HOW_TO_GET.get(image, f"docker pull {image}")
        raise SetupError(f"the daemon has no image {image}: {advice}") from None


def docker_provider(config: EnvConfig, folder: Path) -> DockerProvider:
    """Desktops that belong to ``folder``, of which nothing is used but the name."""
    owner = f"{socket.gethostname()}:{folder.absolute()}"
    return DockerProvider(container_spec(config), owner=owner, host=config.docker_host)


def private_docker_provider(config: EnvConfig) -> PrivateProvider:
    """Desktops of this process. Those that a killed one left, the next start removes."""
    base = Path(tempfile.gettempdir()) / f"dart-containers-{os.getuid()}"
    return PrivateProvider("docker", lambda root: docker_provider(config, root), base=base)


def check_machine(config: EnvConfig) -> str:
    """What the desktops will be. Raises ``SetupError`` where the machine lacks something."""
    spec = container_spec(config)
    client = connect(config.docker_host)
    try:
        find_image(client, spec.image)
        version = client.version()["Version"]
    finally:
        client.close()
    text = f"containers of {spec.image}, {spec.memory_mb} MB each (engine {version})"
    return "; ".join((text, *spec.warnings))
