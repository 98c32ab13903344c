"""The state of an env server in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from dart_gui.env.server.leases import Lease, LeaseState
from dart_gui.env.server.service import ServerStatus
from dart_gui.env.server.tokens import Token


def exposition(status: ServerStatus, leases: Sequence[Lease], tokens: Iterable[Token]) -> str:
    """https://prometheus.io/docs/instrumenting/exposition_formats/"""
    by_state = Counter(lease.state for lease in leases)
    by_owner = Counter(lease.owner for lease in leases)
    states = {state.value: by_state[state] for state in LeaseState if state.value != "ended"}
    limits = {token.name: token.limit for token in tokens}
    gauges: list[tuple[str, str, Mapping[str, float], str]] = [
        ("desktops_max", "Desktops that may be leased at once", {"": status.max_desktops}, ""),
        ("desktops_ready", "Booted spares", {"": status.num_ready}, ""),
        ("desktops_booting", "Desktops that boot now", {"": status.num_booting}, ""),
        ("desktops_ending", "Desktops that are being ended", {"": status.num_ending}, ""),
        ("leases", "Leases now", states, "state"),
        ("leases_by_owner", "Leases now", {name: by_owner[name] for name in limits}, "owner"),
        ("lease_limit", "Leases that an owner may have", limits, "owner"),
        ("uptime_seconds", "Since the start", {"": round(status.uptime_s, 3)}, ""),
    ]
    counters: list[tuple[str, str, Mapping[str, float], str]] = [
        ("leases_ended_total", "Leases that ended, by reason", status.num_ended, "reason"),
        ("boot_failures_total", "Desktops that did not boot", {"": status.num_boot_failures}, ""),
        ("quota_refusals_total", "Leases refused", {"": status.num_quota_refusals}, ""),
        ("orphans_total", "Desktops without a lease, ended", {"": status.num_orphans}, ""),
    ]
    lines: list[str] = []
    for kind, entries in (("gauge", gauges), ("counter", counters)):
        for name, text, values, label in entries:
            lines += [f"# HELP dart_env_{name} {text}", f"# TYPE dart_env_{name} {kind}"]
            for key, value in values.items():
                labels = f'{{{label}="{_escape(key)}"}}' if label else ""
                lines.append(f"dart_env_{name}{labels} {value}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
