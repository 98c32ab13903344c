"""The trainer process: ``dart-gui trainer --run-dir RUN``."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dart_gui.config import Config, load
from dart_gui.data.manager import DataManager
from dart_gui.errors import AuthError, PolicyError
from dart_gui.files import write_whole
from dart_gui.metrics import MetricsWriter
from dart_gui.model.policy_model import PolicyModel
from dart_gui.rollout.client import RolloutClient
from dart_gui.rollout.token import read_token
from dart_gui.train.loop import TrainLoop
from dart_gui.train.trainer import Trainer
from dart_gui.types import WeightsRef

log = logging.getLogger(__name__)

PUBLISH_TIMEOUT_S = 10.0
REFRESH_EVERY_S = 1.0


class ServicePublisher:
    """Posts weights to the rollout service whose address stands in ``status/rollout.json``.

    Level-triggered: the newest weights are posted until a service at the current address took them.
    """

    def __init__(self, run_dir: Path, config: Config) -> None:
        self._address = run_dir / "status" / "rollout.json"
        self._token = read_token(run_dir, config)
        self._newest: WeightsRef | None = None
        self._told: tuple[str, int] | None = None  # address and version of the last success
        self._tried_at = 0.0

    def publish(self, weights: WeightsRef) -> None:
        self._newest = weights
        self._tried_at = 0.0
        self.refresh()

    def refresh(self) -> None:
        if time.monotonic() - self._tried_at < REFRESH_EVERY_S or self._newest is None:
            return
        self._tried_at = time.monotonic()
        if not self._address.exists():
            return
        service = self._address.read_text()
        if self._told == (service, self._newest.policy_version):
            return
        try:
            asyncio.run(self._post(json.loads(service)["url"], self._newest))
        except (PolicyError, AuthError) as error:
            log.warning("the rollout service did not take the weights, will try again: %s", error)
        else:
            self._told = (service, self._newest.policy_version)

    async def _post(self, url: str, weights: WeightsRef) -> None:
        async with RolloutClient(url, self._token, timeout_s=PUBLISH_TIMEOUT_S) as client:
            await client.publish(weights)


def build_trainer(config: Config, read_image: Callable[[str], bytes]) -> Trainer:
    """The trainer of this process, whose torch threads and seed become those of ``config``."""
    torch.set_num_threads(config.launch.threads)
    torch.manual_seed(config.run.seed)
    policy = _new_policy(config)
    reference = _new_reference(config, policy) if config.train.kl_coef > 0 else None
    return Trainer(policy, config.train, read_image=read_image, reference=reference)


def _new_policy(config: Config) -> PolicyModel:
    folder, train = Path(config.model.path), config.train
    device, dtype = train.device or config.model.device, config.model.dtype
    if train.lora_rank == 0:
        return PolicyModel(folder, device=device, dtype=dtype)
    from dart_gui.model.lora import LoraPolicy

    return LoraPolicy(
        folder,
        rank=train.lora_rank,
        alpha=train.lora_alpha,
        targets=train.lora_targets,
        device=device,
        dtype=dtype,
    )


def _new_reference(config: Config, policy: PolicyModel) -> PolicyModel:
    """The initial policy: with LoRA the base, which ``policy`` holds; else a second copy."""
    if config.train.lora_rank:
        return policy
    reference = PolicyModel(policy.folder, device=str(policy.device), dtype=config.model.dtype)
    reference.network.requires_grad_(False)
    return reference


def run(run_dir: Path) -> int:
    """Train until a limit is reached or SIGTERM comes. Returns the exit status."""
    config = load(run_dir / "config.toml")
    metrics = MetricsWriter(run_dir / "metrics.jsonl", "trainer")
    with DataManager.open(run_dir, config) as data:
        trainer = build_trainer(config, data.load_image)
        loop = TrainLoop(
            run_dir,
            config,
            trainer,
            data,
            ServicePublisher(run_dir, config),
            metrics,
            monotonic=time.monotonic,
            sleep=time.sleep,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: loop.stop())
        loop.restore()
        loop.run()
    status = {"pid": os.getpid(), "train_step": loop.train_step, "finished": loop.finished}
    write_whole(run_dir / "status" / "trainer.json", json.dumps(status))
    return 0
