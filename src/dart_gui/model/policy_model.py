"""A Qwen2.5-VL policy: chat messages to ids, screenshots to features, ids to log-probabilities.

Image features are computed once per distinct screenshot and put into the embedded prompt by hand, so
that the engine can cache them by hash and the trainer shares them among the steps of a batch.

Shape legend: ``P`` prompt tokens, ``R`` response tokens, ``B`` sequences, ``L`` padded length,
``H`` hidden size, ``V`` vocabulary, ``N`` merged image tokens.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    GenerationConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from dart_gui.errors import ConfigError, DataError, PolicyError, boundary
from dart_gui.model.adapter_files import read_adapter
from dart_gui.model.folder import base_of, check_model_folder, is_adapter, masked_token_ids
from dart_gui.model.merging import Merger

IMAGE_URL_PREFIX = "sha256:"
PIXEL_CACHE_BYTES = 512 << 20
"""Of preprocessed screenshots that an engine keeps, and a trainer: one of 1920 x 1080 takes 50 MB."""
END_OF_TURN = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class Pixels:
    """A preprocessed screenshot."""

    values: Tensor  # [t*h*w, channels*temporal*patch*patch]
    grid: tuple[int, int, int]  # (t, h, w) in patches

    @property
    def num_bytes(self) -> int:
        return self.values.nbytes


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    prompt_ids: list[int]  # [P], image pads expanded
    image_hashes: list[str]  # in order of appearance


def pick_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


class PromptRenderer:
    """The tokenizer and the image processor of a model folder: what does not need the weights.

    Raises:
        ConfigError: ``folder`` is not a model folder of this architecture, or cannot be loaded.
    """

    def __init__(self, folder: Path) -> None:
        check_model_folder(folder)
        self.folder = folder
        with boundary(ConfigError, f"loading the model {folder}"):
            # Any: the annotations of transformers say less than the objects do.
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            self.image_processor: Any = AutoImageProcessor.from_pretrained(folder)
            config: Any = AutoConfig.from_pretrained(folder)
            generation: Any = GenerationConfig.from_pretrained(folder)
        self.image_token_id: int = config.image_token_id
        self.merge = config.vision_config.spatial_merge_size**2
        eos = generation.eos_token_id
        self.eos_ids = frozenset([eos] if isinstance(eos, int) else eos or [])
        self.masked_token_ids = masked_token_ids(
            self.tokenizer.get_vocab(), config.text_config.vocab_size, self.eos_ids
        )

    # --- text -----------------------------------------------------------------------------

    def render(
        self, messages: Sequence[Mapping[str, Any]], grids: Mapping[str, tuple[int, int, int]]
    ) -> RenderedPrompt:
        """Chat messages to the prompt ids of the model, the assistant header included.

        ``grids`` maps the hash of each image in ``messages`` to its patch grid.
        """
        text = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        hashes = image_hashes(messages)
        if ids.count(self.image_token_id) != len(hashes):
            raise PolicyError(
                f"the chat template gave {ids.count(self.image_token_id)} image pads for "
                f"{len(hashes)} images: is there a special token in the text?"
            )
        remaining = iter(hashes)
        expanded: list[int] = []
        for token in ids:
            is_image = token == self.image_token_id
            repeat = self.num_image_tokens(grids[next(remaining)]) if is_image else 1
            expanded += [token] * repeat
        return RenderedPrompt(expanded, hashes)

    def decode(self, response_ids: Sequence[int]) -> str:
        """Text of a reply; special tokens stay, the end token goes."""
        ids = [token for token in response_ids if token not in self.eos_ids]
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def reply_ids(self, reply: str) -> list[int]:
        """Token ids of a reply that was written, not sampled; the end token included."""
        return self.tokenizer(reply + END_OF_TURN, add_special_tokens=False)["input_ids"]

    # --- images ---------------------------------------------------------------------------

    def num_image_tokens(self, grid: tuple[int, int, int]) -> int:
        return grid[0] * grid[1] * grid[2] // self.merge

    def pixels(self, png: bytes) -> Pixels:
        # The processor too: it refuses an image that is 200 times as long as it is wide.
        with boundary(PolicyError, "decoding a screenshot"):
            image = Image.open(io.BytesIO(png)).convert("RGB")
            features = self.image_processor(images=[image], return_tensors="pt")
        t, h, w = features["image_grid_thw"][0].tolist()
        return Pixels(features["pixel_values"], (t, h, w))


class PolicyModel(PromptRenderer):
    """The network with its tokenizer and image processor. An adapter is merged into its base.

    Raises:
        ConfigError: ``folder`` is not a model folder of this architecture, or cannot be loaded.
        DataError: the adapter in ``folder`` is not whole, or its base is another one by now.
    """

    trains_adapter = False

    def __init__(self, folder: Path, *, device: str = "auto", dtype: str = "float32") -> None:
        super().__init__(folder)
        self.device = pick_device(device)
        base = base_of(folder)
        with boundary(ConfigError, f"loading the model {base}"):
            network: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                base, dtype=getattr(torch, dtype), attn_implementation="sdpa"
            )
        self.network: Any = network.to(self.device).eval()
        self._merger = Merger(self.network, base)
        if is_adapter(folder):
            self._merger.merge(read_adapter(folder))

    @property
    def text(self) -> Any:
        """The language model, without its head."""
        return self.network.model.language_model

    def encode_images(self, images: Sequence[Pixels]) -> list[Tensor]:
        """Features [N, H] of each image."""
        if not images:
            return []
        values = torch.cat([image.values for image in images]).to(self.device, self.network.dtype)
        grids = torch.tensor([image.grid for image in images], device=self.device)
        features = self.network.model.visual(values, grid_thw=grids).pooler_output
        return list(features.split([self.num_image_tokens(image.grid) for image in images]))

    # --- sequences ------------------------------------------------------------------------

    def embed(self, ids: Tensor, num_prompt: int, features: Sequence[Tensor]) -> Tensor:
        """Embeddings [L, H] of ids [L]; the image pads of the prompt take ``features`` in order."""
        embedded = self.text.embed_tokens(ids)
        if not features:
            return embedded
        is_image = ids == self.image_token_id
        is_image[num_prompt:] = False
        joined = torch.cat(list(features)).to(embedded.dtype)
        if int(is_image.sum()) != len(joined):
            raise DataError(
                f"the prompt has {int(is_image.sum())} image pads, its screenshots give "
                f"{len(joined)} features: the image limits of the model folder have changed"
            )
        return embedded.masked_scatter(is_image[:, None], joined)

    def positions(
        self, ids: Tensor, num_prompt: int, grids: Sequence[tuple[int, int, int]]
    ) -> Tensor:
        """Rotary positions [3, L] of ids [L] (time, height, width), as the model defines them."""
        token_types = (ids == self.image_token_id).int()
        token_types[num_prompt:] = 0
        grid_tensor = torch.tensor(list(grids)) if grids else None
        positions, _ = self.network.model.get_rope_index(
            ids[None].cpu(), mm_token_type_ids=token_types[None].cpu(), image_grid_thw=grid_tensor
        )
        return positions[:, 0].to(self.device)

    def log_softmax(self, logits: Tensor, temperature: float, masked: Sequence[int]) -> Tensor:
        """Log-probabilities [..., V] in float32 of what is really sampled from: at ``temperature``,
        without the ``masked`` ids."""
        scaled = logits.float() / temperature
        if masked:
            index = torch.tensor(list(masked), device=logits.device)
            scaled = scaled.index_fill(-1, index, float("-inf"))
        return scaled.log_softmax(-1)

    # --- weights --------------------------------------------------------------------------

    def as_reference(self) -> AbstractContextManager[None]:
        """In this context the network computes the policy of before training. This one is not
        trained: it does so anyway."""
        return nullcontext()

    def load_weights(self, folder: Path) -> None:
        """Copy the weights of ``folder`` into the network, all of them or none; an adapter is merged
        into the whole weights that were loaded last.

        Raises:
            DataError: a file cannot be read, names and shapes are not those of this model, or an
                adapter is of another base.
        """
        if is_adapter(folder):
            self._merger.merge(read_adapter(folder))
            return
        try:
            check_model_folder(folder)
        except ConfigError as error:
            raise DataError(f"cannot take the weights {folder}: {error}") from None
        with boundary(DataError, f"reading the weights {folder}"):
            fresh = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                folder, dtype=self.network.dtype, attn_implementation="sdpa"
            ).state_dict()
        own = self.network.state_dict()
        wrong = [name for name in own if name not in fresh or fresh[name].shape != own[name].shape]
        if wrong or len(fresh) != len(own):
            raise DataError(
                f"{folder} holds other tensors than {self.folder}: {len(wrong)} of {len(own)} "
                f"missing or of another shape, e.g. {wrong[:3]}"
            )
        if not all(bool(torch.isfinite(value).all()) for value in fresh.values()):
            raise DataError(f"{folder} holds weights that are not finite")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(fresh[name])
        self._merger = Merger(self.network, folder)

    def save(self, folder: Path) -> None:
        """Write a Hugging Face folder that any user of this architecture can load."""
        self.network.save_pretrained(folder)
        self.save_renderer(folder)

    def save_renderer(self, folder: Path) -> None:
        """What turns messages and screenshots into inputs: everything but the network."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        extra = self.folder / "dart_agent.json"
        if extra.exists():
            (folder / extra.name).write_bytes(extra.read_bytes())


def image_hashes(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The hashes of the images that ``messages`` name, in order."""
    return [
        part["image_url"]["url"].removeprefix(IMAGE_URL_PREFIX)
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part.get("type") == "image_url"
    ]
