"""Which server each worker of the engine ``vllm`` has: one of those that run already, or one of its
own on its group of GPUs."""

from __future__ import annotations

import os
from typing import Any

from dart_gui.config import Config


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
