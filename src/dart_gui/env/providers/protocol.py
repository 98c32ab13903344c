"""Who makes desktops. A desktop is made from a clean state, used once, and destroyed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dart_gui.env.desktop.address import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Desktop:
    """A desktop that has booted, and where its guest server is."""

    desktop_id: str
    address: Address
    created_at: float  # Unix seconds
    boot_s: float
    is_running: bool = True  # False for one that ended on its own: what is left of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a desktop takes of the machine. Counters run from its creation."""

    memory_bytes: int  # resident, of all its processes
    cpu_s: float
    num_processes: int


class Provider(Protocol):
    """Every method may be called again after it failed, and for several desktops at once."""

    name: str

    async def start(self) -> None:
        """Raises ``SetupError`` where the machine lacks what desktops need."""
        ...

    def warnings(self) -> list[str]:
        """What this machine does not give: isolation or limits that it lacks."""
        ...

    async def create(self, desktop_id: str) -> Desktop:
        """A new desktop; it answers before this returns. One that fails leaves nothing behind.

        Raises:
            EnvError: it did not start, or not in time.
        """
        ...

    async def destroy(self, desktop_id: str) -> None:
        """End a desktop and all in it. Idempotent; nothing happens for one that is unknown.

        Raises:
            EnvError: something of it may be left.
        """
        ...

    async def find(self) -> list[Desktop]:
        """The desktops that have booted and are not destroyed, those of an earlier process and those
        that ended on their own included; never one that is booting. Changes nothing."""
        ...

    async def usage(self, desktop_id: str) -> Usage | None:
        """None for a desktop that does not run."""
        ...

    async def close(self) -> None:
        """Let go of what the provider itself holds; desktops stay. Idempotent."""
        ...
