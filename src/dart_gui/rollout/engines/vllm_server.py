"""A ``vllm serve`` process: its command line, its environment, its start and its end.

vLLM is never imported: it lives in an environment of its own, whose ``vllm`` is run. The server
listens on a Unix socket in a folder that only this user can enter, because its routes for weight
updates know no token.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dart_gui.errors import SetupError, boundary
from dart_gui.model.folder import base_of
from dart_gui.rollout.engines.vllm_weights import adapter_flags

log = logging.getLogger(__name__)

SERVED_NAME = "policy"
MAX_TOP_LOGPROBS = 100
_GRACE_S = "10"  # seconds between the request to end and the end
_GUARD = Path(__file__).with_name("vllm_guard.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSettings:
    """``url`` (or ``unix:<path>``) names a server that runs already; without one, one is started."""

    executable: str = "vllm"
    url: str = ""
    tensor_parallel_size: int = 1
    devices: str = ""  # of CUDA_VISIBLE_DEVICES; empty to leave it as it is
    gpu_memory_utilization: float = 0.9
    args: list[str]  # further flags, the last word on anything above
    env: list[str]  # NAME=value
    start_timeout_s: float = 600.0
    top_logprobs: int = 20  # alternatives per token, from which the entropy is estimated


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """What a server is to serve."""

    folder: Path  # its base is served where it holds an adapter
    max_context: int
    max_batch_size: int
    dtype: str
    threads: int
    lora_rank: int = 0  # of the adapters that it may have to take; 0 for none


def find_executable(name: str) -> str:
    """The path of ``vllm.executable``.

    Raises:
        SetupError: there is none.
    """
    found = shutil.which(name)
    if found is None:
        raise SetupError(
            f"vllm.executable = {name!r} is not there. Install vLLM into an environment of its own "
            "(python3.11 -m venv /opt/vllm && /opt/vllm/bin/pip install vllm; on a machine without a "
            "GPU: scripts/setup_vllm.py) and give the path of its `vllm`, or set vllm.urls to "
            "servers that run already."
        )
    return found


def serve_command(settings: VllmSettings, model: ModelSettings, socket: Path) -> list[str]:
    """``vllm serve`` with what exactness needs: processed log-probabilities are those of the
    distribution that was sampled from; the sampling defaults of the model folder stay out."""
    return [
        find_executable(settings.executable),
        "serve",
        str(base_of(model.folder)),
        *("--uds", str(socket)),
        *("--served-model-name", SERVED_NAME),
        *("--max-model-len", str(model.max_context)),
        *("--max-num-seqs", str(model.max_batch_size)),
        *("--dtype", model.dtype),
        *("--tensor-parallel-size", str(settings.tensor_parallel_size)),
        *("--gpu-memory-utilization", str(settings.gpu_memory_utilization)),
        *("--logprobs-mode", "processed_logprobs"),
        *("--max-logprobs", str(max(MAX_TOP_LOGPROBS, settings.top_logprobs))),
        *("--generation-config", "vllm"),
        "--enable-prefix-caching",
        *(adapter_flags(model.lora_rank) if model.lora_rank else ()),
        *settings.args,
    ]


def server_environment(
    settings: VllmSettings, threads: int, base: Mapping[str, str]
) -> dict[str, str]:
    """Of the server, from that of this process: without our packages, offline, with the routes for
    weight updates."""
    env = {name: value for name, value in base.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {
        "VLLM_SERVER_DEV_MODE": "1",  # the routes for weight updates
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",  # and for adapters
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    if settings.devices:
        env["CUDA_VISIBLE_DEVICES"] = settings.devices
    for item in settings.env:
        name, _, value = item.partition("=")
        env[name] = value
    return env


class VllmServer:
    """One process, from start to stop."""

    def __init__(self, settings: VllmSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="dart-vllm-", dir=_short_temporary())

    @property
    def socket(self) -> Path:
        return Path(self._folder.name) / "server.sock"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, model: ModelSettings) -> None:
        """Returns at once; the server is up when its /health answers.

        Raises:
            SetupError: there is no such executable.
        """
        command = serve_command(self._settings, model, self.socket)
        log.info("starting %s", shlex.join(command))
        self.socket.unlink(missing_ok=True)
        with boundary(SetupError, "starting vllm"):
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_GUARD), _GRACE_S, *command],
                stdin=subprocess.PIPE,
                stdout=2,  # the worker's standard output carries its own report
                env=server_environment(self._settings, model.threads, os.environ),
            )

    def stop(self, *, timeout_s: float = 30.0) -> None:
        """End the server and all its processes."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        deadline = time.monotonic() + timeout_s
        while self.running and time.monotonic() < deadline:
            time.sleep(0.02)
        if self.running:
            self._process.kill()
        self._process.wait()
        self._process = None

    def close(self) -> None:
        self.stop()
        self._folder.cleanup()


def _short_temporary() -> str | None:
    """The path of a Unix socket has at most 107 bytes."""
    return None if len(os.fsencode(tempfile.gettempdir())) < 70 else "/tmp"
