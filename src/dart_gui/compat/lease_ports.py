"""Ports of this server that lead to the desktops of published clients, which talk to them directly."""

from __future__ import annotations

import logging
from functools import partial

from dart_gui.env.desktop.ports import CHROME, SCREEN, VLC
from dart_gui.env.server.forward import Forwarder
from dart_gui.env.server.leases import Lease, UnknownLeaseError
from dart_gui.env.server.service import EnvService
from dart_gui.env.server.tokens import Token

log = logging.getLogger(__name__)

PORTS = {"server_port": None, "chromium_port": CHROME, "vlc_port": VLC, "vnc_port": SCREEN}
"""What the published names lead to in the desktop; None is its guest server."""


class LeasePorts:
    """They admit the address that the lease was given to, and what passes keeps it alive."""

    def __init__(self, service: EnvService, *, host: str) -> None:
        self._service = service
        self._host = host
        self._forwarders: dict[str, list[Forwarder]] = {}  # by lease

    async def open(self, lease: Lease) -> Lease:
        """With the numbers that the lease remembers, else with free ones.

        Raises:
            OSError: a port is taken.
            UnknownLeaseError: the lease does not run.
        """
        address = self._service.desktop(lease.lease_id, self._owner(lease)).address
        forwarders = self._forwarders.setdefault(lease.lease_id, [])
        opened = {}
        for name, port in PORTS.items():
            if port == SCREEN and SCREEN not in address.ports:
                continue
            touch = partial(self._touch, lease)
            forwarder = Forwarder(address, port, admit=lease.client, touch=touch)
            forwarders.append(forwarder)
            opened[name] = await forwarder.start(self._host, lease.ports.get(name, 0))
        return self._service.remember_ports(lease.lease_id, opened)

    async def reopen(self) -> None:
        """Those of an earlier server's leases, whose clients go on with them."""
        for lease in self._service.live():
            if not lease.ports or not self._host:
                continue
            try:
                await self.open(lease)
            except (OSError, UnknownLeaseError) as error:
                log.warning("ports of the lease %s stay closed: %s", lease.lease_id, error)

    async def close(self, lease_id: str) -> None:
        for forwarder in self._forwarders.pop(lease_id, []):
            await forwarder.close()

    async def close_ended(self) -> None:
        live = {lease.lease_id for lease in self._service.live()}
        for lease_id in set(self._forwarders) - live:
            await self.close(lease_id)

    async def close_all(self) -> None:
        for lease_id in list(self._forwarders):
            await self.close(lease_id)

    def _owner(self, lease: Lease) -> Token:
        token = self._service.tokens.get(lease.owner)
        if token is None:
            raise UnknownLeaseError(f"{lease.owner}, who has it, has no token now")
        return token

    def _touch(self, lease: Lease) -> bool:
        try:
            self._service.heartbeat(lease.lease_id, self._owner(lease))
        except UnknownLeaseError:
            return False
        return True


def published_ports(lease: Lease) -> dict[str, int]:
    """Published clients insist on four numbers that are not 0: where a desktop has no page with its
    screen, that is the guest's."""
    guest = lease.ports.get("server_port", 0)
    return {name: lease.ports.get(name, guest) for name in PORTS}
