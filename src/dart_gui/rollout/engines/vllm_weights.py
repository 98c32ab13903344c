"""How new weights come into a running vLLM server: whole ones in the place of the old, or an adapter
beside a base that stays."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dart_gui.errors import ConfigError, DataError, PolicyError, SetupError
from dart_gui.model.adapter_files import changes_nothing, check_base, read_adapter
from dart_gui.model.folder import base_of, is_adapter
from dart_gui.model.weight_files import check_same_tensors, read_shapes, sample_digest
from dart_gui.rollout.engines.vllm_api import VllmApi
from dart_gui.types import WeightsRef

log = logging.getLogger(__name__)
_PREFIX = "dart-"
_SERVER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of vLLM's --max-lora-rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Weights as a server has them."""

    weights: WeightsRef
    digest: str
    adapter: bool = False
    is_base: bool = False  # an adapter that changes nothing, or the base without one

    @property
    def label(self) -> str:
        """What the server calls its weights, and the salt of its caches: an adopted server may have
        served another run's weights of the same number."""
        return f"{_PREFIX}{self.weights.policy_version}-{self.digest[:16]}"

    @property
    def model(self) -> str:
        """The name that requests give; empty for that of the server's own model."""
        return self.label if self.adapter else ""

    @property
    def folder(self) -> Path:
        return Path(self.weights.path)


class Swapping(Protocol):
    def check(self, weights: WeightsRef) -> Served:
        """Reads headers and samples only.

        Raises:
            DataError: the server must not be asked to take these.
        """

    async def begin(self, api: VllmApi, served: Served, *, adopted: bool) -> None:
        """To these weights, in a server that has just started, or that was ``adopted`` with whatever
        it had."""

    async def take(self, api: VllmApi, served: Served) -> None:
        """To these weights, which may be those of before: then from what the server still has."""

    async def drop(self, api: VllmApi, served: Served) -> None:
        """They are not needed any more."""


class WholeWeights:
    """All parameters, replaced in place."""

    def __init__(self, folder: Path) -> None:
        self._shapes = read_shapes(folder)

    def check(self, weights: WeightsRef) -> Served:
        folder = Path(weights.path)
        if is_adapter(folder):
            raise DataError(
                f"cannot take the weights {folder}: it holds an adapter, and the server was started "
                "without train.lora_rank"
            )
        check_same_tensors(folder, self._shapes)
        return Served(weights=weights, digest=sample_digest(folder))

    async def begin(self, api: VllmApi, served: Served, *, adopted: bool) -> None:
        if adopted and await api.weight_label() != served.label:
            await self.take(api, served)

    async def take(self, api: VllmApi, served: Served) -> None:
        await api.reload(served.folder, served.label)

    async def drop(self, api: VllmApi, served: Served) -> None:
        return


class AdapterWeights:
    """One adapter after the other, each under a name of its own, so that no request and no cache can
    mean another one. vLLM's ``load_inplace`` is not used: it reads the folder again at every step."""

    def __init__(self, base: Path, *, max_rank: int) -> None:
        self._base = base
        self._base_digest = sample_digest(base)
        self._max_rank = max_rank

    def check(self, weights: WeightsRef) -> Served:
        folder = Path(weights.path)
        if not is_adapter(folder):
            return self._check_base(weights, folder)
        adapter = read_adapter(folder)
        check_base(adapter, self._base_digest)
        if adapter.rank > self._max_rank:
            raise DataError(
                f"{folder} has an adapter of rank {adapter.rank}, the server takes up to "
                f"{self._max_rank}: it was started for train.lora_rank"
            )
        digest, is_base = sample_digest(folder), changes_nothing(folder)
        return Served(weights=weights, digest=digest, adapter=True, is_base=is_base)

    def _check_base(self, weights: WeightsRef, folder: Path) -> Served:
        digest = sample_digest(folder)
        if digest != self._base_digest:
            raise DataError(
                f"cannot take the weights {folder}: the server has adapters of {self._base} in "
                "service, and these are neither one nor the base itself"
            )
        return Served(weights=weights, digest=digest, is_base=True)

    async def begin(self, api: VllmApi, served: Served, *, adopted: bool) -> None:
        if adopted:
            await self._check_server(api)
            for name in await self._loaded(api):  # by a worker before us, from who knows where
                await api.unload_adapter(name)
        await self.take(api, served)

    async def take(self, api: VllmApi, served: Served) -> None:
        if served.adapter and served.model not in await self._loaded(api):
            await api.load_adapter(served.model, served.folder)

    async def drop(self, api: VllmApi, served: Served) -> None:
        """A name that stays costs a line in a list: no reason to fail."""
        try:
            if served.model in await self._loaded(api):
                await api.unload_adapter(served.model)
        except (DataError, PolicyError) as error:
            log.warning("the adapter %s is still loaded: %s", served.model, error)

    async def _loaded(self, api: VllmApi) -> list[str]:
        names = [str(model["id"]) for model in await api.models()]
        return [name for name in names if name.startswith(_PREFIX)]

    async def _check_server(self, api: VllmApi) -> None:
        root = str((await api.model()).get("root"))
        if Path(root).resolve() != self._base.resolve():
            raise SetupError(
                f"the server of vllm.urls serves {root}; to train an adapter it has to serve its base, "
                f"{self._base}"
            )
        if not await api.takes_adapters():
            raise SetupError(
                "the server of vllm.urls takes no adapters: start it with "
                f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 {' '.join(adapter_flags(self._max_rank))}"
            )


def swapping_for(folder: Path, rank: int) -> Swapping:
    """For a server of ``folder``, or of the base of the adapter in it, that takes adapters up to
    ``rank`` (0: none)."""
    return AdapterWeights(base_of(folder), max_rank=rank) if rank else WholeWeights(folder)


def rank_for(folder: Path, lora_rank: int) -> int:
    """The rank that a server has to provide for, to take adapters of ``lora_rank`` (0: none) and to
    begin with ``folder``; 0 where it serves whole weights.

    Raises:
        ConfigError: the adapter in ``folder`` is not whole.
    """
    try:
        own = read_adapter(folder).rank if is_adapter(folder) else 0
    except DataError as error:
        raise ConfigError(str(error)) from None
    return max(lora_rank, own)


def adapter_flags(rank: int) -> Sequence[str]:
    """Of ``vllm serve``. One adapter is in service; a second one stays in main memory, so that a load
    that fails costs no reading of the one before."""
    size = next(size for size in _SERVER_RANKS if size >= rank)
    flags = ("--enable-lora", "--max-loras", "1", "--max-cpu-loras", "2")
    return (*flags, "--max-lora-rank", str(size))
