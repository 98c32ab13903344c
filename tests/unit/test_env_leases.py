from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dart_gui.env.server.leases import (
    TRANSITIONS,
    EndReason,
    Lease,
    LeaseState,
    LeaseTable,
    QuotaError,
    UnknownLeaseError,
)
from dart_gui.env.server.metrics import exposition
from dart_gui.env.server.registry import Registry, Remembered
from dart_gui.env.server.service import ServerStatus
from dart_gui.env.server.tokens import ChangedLimit, Token, Tokens, load_tokens, make_token
from dart_gui.errors import AuthError, ConfigError, DataError, SetupError
from dart_gui.fakes import FakeClock


def ids() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"L{next(numbers)}"


def table(clock: FakeClock | None = None, **kwargs: int) -> LeaseTable:
    return LeaseTable(clock=clock or FakeClock(100.0), new_id=ids(), **kwargs)


def test_a_lease_from_start_to_end() -> None:
    clock = FakeClock(100.0)
    leases = table(clock)
    lease = leases.open("ann", limit=1, ttl_s=30, client="10.0.0.1")
    assert (lease.state, lease.expires_at, lease.client) == (LeaseState.STARTING, 130, "10.0.0.1")
    clock.advance(20)
    lease = leases.ready("L1", "desktop-7")
    assert (lease.state, lease.desktop_id, lease.expires_at) == (
        LeaseState.RUNNING,
        "desktop-7",
        150,
    )
    clock.advance(10)
    assert leases.heartbeat("L1").expires_at == 160
    ended = leases.end("L1", EndReason.RELEASED)
    assert (ended.state, ended.reason) == (LeaseState.ENDED, EndReason.RELEASED)
    assert leases.end("L1", EndReason.EXPIRED).reason is EndReason.RELEASED
    assert leases.num_ended == {EndReason.RELEASED: 1}
    with pytest.raises(UnknownLeaseError, match="has ended"):
        leases.heartbeat("L1")
    with pytest.raises(ValueError, match="does not go"):
        leases.ready("L1", "desktop-8")


def test_a_lease_without_a_heartbeat_expires() -> None:
    clock = FakeClock()
    leases = table(clock)
    leases.open("ann", limit=9, ttl_s=10)
    leases.open("ann", limit=9, ttl_s=20)
    clock.advance(10)
    assert leases.expired() == []  # at its very end it still holds
    clock.advance(0.1)
    assert [lease.lease_id for lease in leases.expired()] == ["L1"]
    leases.end("L1", EndReason.EXPIRED)
    assert leases.expired() == []


def test_what_is_not_yours_is_not_there() -> None:
    leases = table()
    leases.open("ann", limit=1, ttl_s=10)
    assert leases.get("L1", "ann").owner == "ann"
    assert leases.get("L1").owner == "ann"
    for lease_id, owner in (("L1", "bob"), ("L2", "ann")):
        with pytest.raises(UnknownLeaseError, match=f"no lease {lease_id}"):
            leases.get(lease_id, owner)


def test_ended_leases_are_forgotten_in_time() -> None:
    leases = table(max_ended=2)
    for _ in range(4):
        leases.end(leases.open("ann", limit=1, ttl_s=10).lease_id, EndReason.RELEASED)
    assert leases.get("L4").reason is EndReason.RELEASED
    with pytest.raises(UnknownLeaseError):
        leases.get("L2")


@given(
    st.lists(
        st.tuples(st.sampled_from(["open", "ready", "end"]), st.sampled_from(["a", "b"])),
        max_size=60,
    ),
    st.integers(0, 4),
)
def test_no_owner_ever_has_more_than_the_limit(events: list[tuple[str, str]], limit: int) -> None:
    leases = table()
    refused = 0
    for event, owner in events:
        live = leases.live(owner)
        if event == "open":
            if len(live) < limit:
                leases.open(owner, limit=limit, ttl_s=10)
                continue
            with pytest.raises(QuotaError, match=f"{limit} of {limit} desktops"):
                leases.open(owner, limit=limit, ttl_s=10)
            refused += 1
        elif event == "ready" and live and live[0].state is LeaseState.STARTING:
            leases.ready(live[0].lease_id, "d")
        elif event == "end" and live:
            leases.end(live[0].lease_id, EndReason.RELEASED)
        assert all(leases.num_live(name) <= limit for name in ("a", "b"))
    assert leases.num_refused == refused


def test_every_state_has_its_transitions() -> None:
    assert set(TRANSITIONS) == set(LeaseState)
    assert TRANSITIONS[LeaseState.ENDED] == frozenset()


# --- the registry --------------------------------------------------------------------------------


def some_leases() -> list[Lease]:
    leases = table()
    leases.open("ann", limit=2, ttl_s=10)
    leases.open("ann", limit=2, ttl_s=10)
    leases.ready("L2", "desktop-1")
    return leases.live()


def test_a_registry_gives_back_what_it_was_given(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "server")
    assert registry.open().leases == []
    saved = Remembered(some_leases(), {"ann": ChangedLimit(limit=3, configured=2)})
    registry.save(saved)
    registry.close()
    assert registry.open() == saved
    registry.close()


def test_two_servers_do_not_share_a_folder(tmp_path: Path) -> None:
    first, second = Registry(tmp_path), Registry(tmp_path)
    first.open()
    with pytest.raises(SetupError, match="another env server"):
        second.open()
    first.close()
    second.open()
    second.close()


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"leases": [{}]}'])
def test_a_registry_that_is_broken_says_what_to_do(tmp_path: Path, text: str) -> None:
    (tmp_path / "registry.json").write_text(text)
    registry = Registry(tmp_path)
    with pytest.raises(DataError, match="Delete it"):
        registry.open()
    registry.close()


# --- tokens ---------------------------------------------------------------------------------------

ANN = Token(name="ann", token="a" * 16, limit=2)
BOB = Token(name="bob", token="b" * 16, limit=0, admin=True)


def test_tokens_are_found_by_their_secret() -> None:
    tokens = Tokens([ANN, BOB])
    assert tokens.find("b" * 16) == BOB
    for wrong in ("", "a", "a" * 17, "ann", "ä" * 16, "\ud800"):
        with pytest.raises(AuthError, match="valid token"):
            tokens.find(wrong)


def test_limits_can_be_set() -> None:
    tokens = Tokens([ANN, BOB])
    assert tokens.set_limit("ann", 7).limit == 7
    assert tokens.find("a" * 16).limit == 7
    for name, limit in (("eve", 1), ("ann", -1)):
        with pytest.raises(ConfigError, match="no token"):
            tokens.set_limit(name, limit)
    assert tokens.changed_limits() == {"ann": ChangedLimit(limit=7, configured=2)}
    tokens.set_limit("ann", 2)
    assert tokens.changed_limits() == {}


def test_a_limit_that_was_set_holds_until_the_configuration_changes() -> None:
    tokens = Tokens([ANN, BOB])
    tokens.restore_limits(
        {
            "ann": ChangedLimit(limit=7, configured=ANN.limit),
            "bob": ChangedLimit(limit=7, configured=BOB.limit + 1),
            "eve": ChangedLimit(limit=7, configured=1),
        }
    )
    assert [token.limit for token in tokens.all()] == [7, BOB.limit]


def test_names_and_secrets_are_unique() -> None:
    for other in (
        Token(name="ann", token="c" * 16, limit=1),
        Token(name="c", token="a" * 16, limit=1),
    ):
        with pytest.raises(ConfigError, match="unique"):
            Tokens([ANN, other])


def test_tokens_are_read_from_a_file_that_nobody_else_reads(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    secret = json.dumps("s" * 20)
    path.write_text(f'[[token]]\nname = "x"\ntoken = {secret}\nlimit = 4\n')
    path.chmod(0o600)
    assert load_tokens(path).find("s" * 20) == Token(name="x", token="s" * 20, limit=4)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_tokens(path)


@pytest.mark.parametrize(
    "text", ["", "x =", "[[token]]\nname = 'x'", "[[token]]\nname='x'\ntoken='short'\nlimit=1"]
)
def test_a_token_file_that_is_wrong_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="cannot read tokens"):
        load_tokens(path)
    with pytest.raises(ConfigError, match="cannot read tokens"):
        load_tokens(tmp_path / "none.toml")


def test_a_token_is_made_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "token"
    (made,) = make_token(path, limit=3).all()
    assert (made.admin, made.limit) == (True, 3)
    assert path.stat().st_mode & 0o777 == 0o600
    assert make_token(path, limit=3).all() == [made]


def test_metrics_are_in_prometheus_format() -> None:
    status = ServerStatus(
        provider="fake",
        max_desktops=4,
        num_leased=2,
        num_ready=1,
        num_booting=0,
        num_ending=0,
        num_boot_failures=3,
        num_quota_refusals=5,
        num_orphans=6,
        num_ended={"expired": 7},
        uptime_s=12.5,
        warnings=[],
    )
    lines = exposition(status, some_leases(), [ANN, BOB]).splitlines()
    for line in (
        "dart_env_desktops_max 4",
        'dart_env_leases{state="starting"} 1',
        'dart_env_leases{state="running"} 1',
        'dart_env_leases_by_owner{owner="ann"} 2',
        'dart_env_leases_by_owner{owner="bob"} 0',
        'dart_env_leases_ended_total{reason="expired"} 7',
        "dart_env_boot_failures_total 3",
        "# TYPE dart_env_orphans_total counter",
    ):
        assert line in lines
    assert not any(ANN.token in line for line in lines)
