"""The parts of a rollout service, made from the configuration."""

from __future__ import annotations

import itertools
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

from dart_gui.config import Config
from dart_gui.rollout.chat import ChatDefaults
from dart_gui.rollout.fleet import Fleet
from dart_gui.rollout.states import WorkerSlot
from dart_gui.rollout.worker import WorkerSettings
from dart_gui.rollout.worker_process import WorkerProcess
from dart_gui.types import WeightsRef


def socket_dir() -> str | None:
    """The path of a Unix socket has at most 107 bytes (103 on macOS)."""
    return None if len(os.fsencode(tempfile.gettempdir())) < 70 else "/tmp"


def capacity(max_batch_size: int) -> int:
    """A few more than are decoded at once: the engine starts the next without a round trip."""
    return max_batch_size + max(1, max_batch_size // 4)


def chat_defaults(config: Config) -> ChatDefaults:
    return ChatDefaults(
        model=Path(config.model.path).name or config.model.path,
        temperature=config.rollout.temperature,
        max_tokens=config.rollout.max_tokens,
        max_context=config.rollout.max_context,
        draw_seed=lambda: secrets.randbits(63),
    )


def new_fleet(config: Config, folder: Path, *, base: WeightsRef, desired: WeightsRef) -> Fleet:
    numbers = itertools.count()

    def new_process(slot: WorkerSlot) -> WorkerProcess:
        # a socket of its own for each start: the one of a killed process stays on disk
        path = folder / f"{slot.worker_id}-{next(numbers)}.sock"
        return WorkerProcess(slot, _worker_settings(config, slot.worker_id, path))

    return Fleet(
        [WorkerSlot(worker_id=f"worker-{index}") for index in range(config.rollout.num_workers)],
        new_process,
        base=base,
        desired=desired,
        max_unavailable=config.rollout.max_unavailable,
        drain_timeout_s=config.rollout.request_timeout_s,
        abort=config.rollout.update_mode == "abort",
    )


def _worker_settings(config: Config, worker_id: str, path: Path) -> WorkerSettings:
    return WorkerSettings(
        worker_id=worker_id,
        socket=str(path),
        engine=config.rollout.engine,
        model_path=config.model.path,
        policy_version=0,
        max_batch_size=config.rollout.max_batch_size,
        max_context=config.rollout.max_context,
        device=config.model.device,
        dtype=config.model.dtype,
        threads=config.launch.threads,
        lora_rank=config.train.lora_rank,
        image_cache_bytes=config.rollout.image_cache_mb * 2**20,
        request_timeout_s=config.rollout.request_timeout_s,
        vllm=worker_vllm(config, worker_id) if config.rollout.engine == "vllm" else None,
    )


def worker_vllm(config: Config, worker_id: str) -> dict[str, Any]:
    """The fields of :class:`dart_gui.rollout.engines.vllm_server.VllmSettings`."""
    index = int(worker_id.rpartition("-")[2])
    vllm = config.vllm
    settings = vllm.model_dump()
    urls = settings.pop("urls")
    return settings | {
        "url": urls[index] if urls else "",
        "devices": gpu_group(
            os.environ.get("CUDA_VISIBLE_DEVICES"), index, vllm.tensor_parallel_size
        )
        if config.model.device != "cpu"
        else "",
    }


def gpu_group(visible: str | None, index: int, size: int) -> str:
    """The ``index``-th group of ``size`` GPUs among those that are visible (None: all, by number).

    >>> gpu_group(None, 1, 2), gpu_group("4,5,6,7", 0, 2)
    ('2,3', '4,5')
    """
    first = index * size
    if visible is None:
        return ",".join(str(number) for number in range(first, first + size))
    return ",".join(visible.split(",")[first : first + size])
