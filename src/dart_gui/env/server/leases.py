"""Who holds which desktop, and for how long. Plain state; nothing here waits or talks.

STARTING ---desktop ready---> RUNNING ---released, expired, stopped, lost---> ENDED
    +--------did not boot, released, stopped--------------------------------> ENDED
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum

from dart_gui.errors import DartError

MIN_TTL_S, MAX_TTL_S = 1.0, 24 * 3600.0


class LeaseState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"


TRANSITIONS: Mapping[LeaseState, frozenset[LeaseState]] = {
    LeaseState.STARTING: frozenset({LeaseState.RUNNING, LeaseState.ENDED}),
    LeaseState.RUNNING: frozenset({LeaseState.ENDED}),
    LeaseState.ENDED: frozenset(),
}


class EndReason(StrEnum):
    """Why a lease ended. A closed set."""

    RELEASED = "released"  # by its owner
    EXPIRED = "expired"  # no heartbeat within its time to live
    STOPPED = "stopped"  # by an administrator, or with the server
    BOOT_FAILED = "boot_failed"
    LOST = "lost"  # its desktop ended on its own, or with a server that was killed


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A right to one desktop until ``expires_at``, which a heartbeat moves. Times in Unix seconds."""

    lease_id: str
    owner: str  # name of a token, never the token
    state: LeaseState
    ttl_s: float
    created_at: float
    expires_at: float
    desktop_id: str = ""  # while running
    reason: EndReason | None = None  # once ended
    message: str = ""  # what went wrong
    client: str = ""  # address that asked for it
    ports: Mapping[str, int] = field(default_factory=dict)  # of ours that lead to its desktop

    @property
    def is_live(self) -> bool:
        return self.state is not LeaseState.ENDED


def lease_json(lease: Lease) -> dict[str, object]:
    return asdict(lease)


class QuotaError(DartError):
    """The owner has as many leases as it may."""

    def __init__(self, owner: str, current: int, limit: int) -> None:
        super().__init__(
            f"{owner} holds {current} of {limit} desktops: release one, or ask for a higher limit"
        )
        self.current, self.limit = current, limit


class UnknownLeaseError(DartError):
    """There is no such lease, or it is somebody else's."""


class LeaseTable:
    """All leases of a server. Methods do not await: between two of them nothing else happens, so a
    quota holds whatever the number of clients that ask at once."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        max_ended: int = 200,
    ) -> None:
        self._clock = clock
        self._new_id = new_id
        self._max_ended = max_ended  # so many are remembered, for clients that ask late
        self._leases: dict[str, Lease] = {}
        self.num_ended: Counter[str] = Counter()  # by reason, since the start
        self.num_refused = 0  # by quota, since the start

    def open(self, owner: str, *, limit: int, ttl_s: float, client: str = "") -> Lease:
        """A new lease, starting.

        Raises:
            QuotaError: the owner holds ``limit`` already.
        """
        current = self.num_live(owner)
        if current >= limit:
            self.num_refused += 1
            raise QuotaError(owner, current, limit)
        now = self._clock()
        lease = Lease(
            lease_id=self._new_id(),
            owner=owner,
            state=LeaseState.STARTING,
            ttl_s=ttl_s,
            created_at=now,
            expires_at=now + ttl_s,
            client=client,
        )
        self._leases[lease.lease_id] = lease
        return lease

    def restore(self, lease: Lease) -> None:
        """A lease of an earlier process of this server. Its time to live starts anew: who has it could
        not reach us, and heartbeats are not on the disk."""
        self._put(replace(lease, expires_at=self._clock() + lease.ttl_s))

    def get(self, lease_id: str, owner: str | None = None) -> Lease:
        """``owner`` None sees all.

        Raises:
            UnknownLeaseError: there is none, or it is not ``owner``'s: the two are not told apart.
        """
        lease = self._leases.get(lease_id)
        if lease is None or owner not in (None, lease.owner):
            raise UnknownLeaseError(f"there is no lease {lease_id}")
        return lease

    def ready(self, lease_id: str, desktop_id: str) -> Lease:
        """Its desktop is there; the time to live starts anew."""
        lease = self._move(lease_id, LeaseState.RUNNING)
        expires_at = self._clock() + lease.ttl_s
        return self._put(replace(lease, desktop_id=desktop_id, expires_at=expires_at))

    def opened(self, lease_id: str, ports: Mapping[str, int]) -> Lease:
        """Ports for it are open."""
        return self._put(replace(self.get(lease_id), ports=dict(ports)))

    def heartbeat(self, lease_id: str) -> Lease:
        """Raises ``UnknownLeaseError`` for one that has ended: it does not come back."""
        lease = self.get(lease_id)
        if not lease.is_live:
            raise UnknownLeaseError(f"the lease {lease_id} has ended: {lease.reason}")
        return self._put(replace(lease, expires_at=self._clock() + lease.ttl_s))

    def end(self, lease_id: str, reason: EndReason, message: str = "") -> Lease:
        """Idempotent: the first reason stays."""
        lease = self.get(lease_id)
        if not lease.is_live:
            return lease
        lease = self._move(lease_id, LeaseState.ENDED)
        self.num_ended[reason] += 1
        self._put(replace(lease, reason=reason, message=message))
        self._forget()
        return replace(lease, reason=reason, message=message)

    def expired(self) -> list[Lease]:
        now = self._clock()
        return [
            lease for lease in self._leases.values() if lease.is_live and lease.expires_at < now
        ]

    def live(self, owner: str | None = None) -> list[Lease]:
        """Oldest first; of all owners where ``owner`` is None."""
        return [
            lease
            for lease in self._leases.values()
            if lease.is_live and owner in (None, lease.owner)
        ]

    def num_live(self, owner: str) -> int:
        return len(self.live(owner))

    def _move(self, lease_id: str, state: LeaseState) -> Lease:
        lease = self.get(lease_id)
        if state not in TRANSITIONS[lease.state]:
            raise ValueError(f"a lease does not go from {lease.state} to {state}")
        return self._put(replace(lease, state=state))

    def _put(self, lease: Lease) -> Lease:
        self._leases[lease.lease_id] = lease
        return lease

    def _forget(self) -> None:
        ended = [lease.lease_id for lease in self._leases.values() if not lease.is_live]
        for lease_id in ended[: -self._max_ended or None]:
            del self._leases[lease_id]
