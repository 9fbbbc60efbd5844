"""Redux: a picture as more text tokens, so that weights that read words draw in its likeness.

A folder of diffusers' FluxPriorReduxPipeline, of which SigLIP and the head are used. Needs torch only where it looks.
What it does not know: prompts, the networks that read its words, how it is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from PIL import Image

from fluxserve.engine import layout
from fluxserve.engine import pixels as pixels_of
from fluxserve.engine.base import Pixels
from fluxserve.errors import CheckpointMissing, CheckpointRefused

if TYPE_CHECKING:
    import torch
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from torch import Tensor
    from transformers import SiglipVisionModel

PIPELINE = "FluxPriorReduxPipeline"
ENCODER, HEAD = "image_encoder", "image_embedder"
ENCODER_FILE, HEAD_FILE = f"{ENCODER}/model.safetensors", f"{HEAD}/diffusion_pytorch_model.safetensors"
_PREPARED = "feature_extractor/preprocessor_config.json"
#: Every file that decides what is seen.
FILES = (ENCODER_FILE, HEAD_FILE, f"{ENCODER}/config.json", f"{HEAD}/config.json", _PREPARED)


class _Sides(msgspec.Struct, frozen=True):
    height: int
    width: int


class Preparation(msgspec.Struct, frozen=True):
    """`preprocessor_config.json`: the size that SigLIP looks at, how pictures get there, how levels are scaled."""

    size: _Sides
    resample: int = Image.Resampling.BICUBIC
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def prepared(self, picture: Pixels) -> Tensor:
        """(1, 3, height, width): stretched to the size, whatever its shape, as the network learnt it."""
        import torch

        size = (self.size.width, self.size.height)
        resized = pixels_of.to_image(picture).resize(size, Image.Resampling(self.resample))
        levels = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(size[1], size[0], 3) / 255
        return ((levels - torch.tensor(self.image_mean)) / torch.tensor(self.image_std)).permute(2, 0, 1)[None]


class _Head(msgspec.Struct, frozen=True):
    txt_in_features: int = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Redux:
    """The loaded networks."""

    encoder: SiglipVisionModel
    head: ReduxImageEncoder
    preparation: Preparation

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Both networks."""
        return self.encoder, self.head

    def words(self, picture: Pixels, likeness: float) -> Tensor:
        """(1, text tokens, width): what stands for the picture, scaled by `likeness`."""
        levels = self.preparation.prepared(picture).to(self.encoder.device, self.encoder.dtype)
        seen = self.encoder(pixel_values=levels).last_hidden_state
        words: Tensor = self.head(seen).image_embeds
        return words * likeness


def check(folder: Path, width: int) -> None:
    """Raise CheckpointRefused or CheckpointMissing where the folder is no whole Redux of words of this `width`."""
    index = layout.read_index(folder)
    if index.pipeline != PIPELINE:
        raise CheckpointRefused(f"{folder} holds a {index.pipeline}; as redux name a folder of a {PIPELINE}.")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointMissing(f"{folder} is incomplete: {', '.join(missing)} missing. Download the whole checkpoint.")
    preparation(folder)
    head = layout.read_json(folder / HEAD / "config.json", _Head)
    if head.txt_in_features != width:
        raise CheckpointRefused(
            f"{folder} makes words {head.txt_in_features} wide, and the checkpoint's are {width}: "
            "name the Redux that was made for it."
        )


def preparation(folder: Path) -> Preparation:
    """How pictures are prepared for the folder's encoder."""
    return layout.read_json(folder / _PREPARED, Preparation)
