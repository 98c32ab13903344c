"""The supervisor's view of the rollout service: one small blocking client of ``/status``.

The supervisor is not asynchronous: it looks once in a while, briefly, and a service that does not
answer is a fact like any other.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dart_gui.config import Config
from dart_gui.launch.run_folder import RunFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    worker_id: str
    state: str
    policy_version: int
    num_in_flight: int
    busy_s: float  # since the worker's start
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView:
    workers: tuple[WorkerView, ...]
    desired_version: int
    queue_size: int

    @property
    def ready_version(self) -> int | None:
        """The oldest version in service; None while no worker serves."""
        versions = [worker.policy_version for worker in self.workers if worker.state == "ready"]
        return min(versions, default=None)


class ServiceProbe:
    """Where the service is and what it says; re-read each time, so a restarted one is found."""

    def __init__(self, folder: RunFolder, config: Config, *, timeout_s: float = 2.0) -> None:
        self._folder = folder
        self._config = config
        self._timeout_s = timeout_s

    @property
    def url(self) -> str:
        """Empty while it is unknown."""
        return (self._config.rollout.url or str(self._folder.status("rollout").get("url", ""))
                ).rstrip("/")  # fmt: skip

    def status(self) -> ServiceView | None:
        """None where the service does not answer (yet)."""
        answer = self._call("GET", "/status")
        return parse_status(answer) if answer is not None else None

    def _token(self) -> str:
        path = self._config.rollout.token_file or self._folder.token
        return Path(path).read_text(encoding="ascii").strip()

    def _call(self, method: str, path: str) -> Mapping[str, Any] | None:
        if not self.url:
            return None
        request = urllib.request.Request(
            self.url + path,
            method=method,
            headers={"Authorization": f"Bearer {self._token()}"},
        )
        # No proxy: the service is ours, on loopback or at an address that the user named.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=self._timeout_s) as answer:
                value = json.load(answer)
        except (OSError, ValueError, http.client.HTTPException):
            return None
        return value if isinstance(value, dict) else None


def parse_status(answer: Mapping[str, Any]) -> ServiceView | None:
    """None where the answer is not a status."""
    try:
        workers = tuple(
            WorkerView(
                worker_id=str(worker["worker_id"]),
                state=str(worker["state"]),
                policy_version=int(worker["policy_version"]),
                num_in_flight=int(worker["num_in_flight"]),
                busy_s=float(worker["busy_s"]),
                restarts=int(worker["restarts"]),
            )
            for worker in answer["workers"]
        )
        return ServiceView(
            workers=workers,
            desired_version=int(answer["desired_version"]),
            queue_size=int(answer["queue_size"]),
        )
    except (KeyError, TypeError, ValueError):
        return None
