"""Redux: a picture as more text tokens, so that weights that read words draw in its likeness.

A folder of diffusers' FluxPriorReduxPipeline, of which SigLIP and the head are used. Needs torch only where it looks.
What it does not know: prompts, the networks that read its words, how it is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fluxserve.engine import layout, preparation
from fluxserve.engine.base import Pixels
from fluxserve.engine.preparation import Preparation
from fluxserve.errors import CheckpointMissing, CheckpointRefused

if TYPE_CHECKING:
    import torch
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from torch import Tensor
    from transformers import SiglipVisionModel

PIPELINE = "FluxPriorReduxPipeline"
ENCODER, HEAD = "image_encoder", "image_embedder"
ENCODER_FILE, HEAD_FILE = f"{ENCODER}/model.safetensors", f"{HEAD}/diffusion_pytorch_model.safetensors"
PREPARED = f"feature_extractor/{preparation.FILE}"
#: Every file that decides what is seen.
FILES = (ENCODER_FILE, HEAD_FILE, f"{ENCODER}/config.json", f"{HEAD}/config.json", PREPARED)


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
    layout.read_json(folder / PREPARED, Preparation)
    head = layout.read_json(folder / HEAD / "config.json", _Head)
    if head.txt_in_features != width:
        raise CheckpointRefused(
            f"{folder} makes words {head.txt_in_features} wide, and the checkpoint's are {width}: "
            "name the Redux that was made for it."
        )
