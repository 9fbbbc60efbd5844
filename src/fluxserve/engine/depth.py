"""Depths: a picture of how near everything in a picture is, white for the nearest, as control networks learnt it.

A folder of transformers' Depth Anything or DPT. Needs torch only where it looks.
What it does not know: prompts, the networks that follow its pictures, how it is loaded.
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
    from transformers import DepthAnythingForDepthEstimation, DPTForDepthEstimation

_CLASSES = ("DepthAnythingForDepthEstimation", "DPTForDepthEstimation")
WEIGHTS = "model.safetensors"
#: Every file that decides what is seen.
FILES = (WEIGHTS, "config.json", preparation.FILE)


class Config(msgspec.Struct, frozen=True):
    """`config.json`: the class that the weights are of comes first."""

    architectures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Depth:
    """The loaded network."""

    network: DepthAnythingForDepthEstimation | DPTForDepthEstimation
    preparation: Preparation

    def depths(self, picture: Pixels) -> Pixels:
        """Of the same size, from black, the farthest, to white, the nearest; black where all is equally near."""
        import torch
        from torch.nn.functional import interpolate

        levels = self.preparation.prepared(picture).to(self.network.device, self.network.dtype)
        near = self.network(pixel_values=levels).predicted_depth[:, None].float()
        sides = (picture.size.height, picture.size.width)
        large = interpolate(near, sides, mode="bicubic", align_corners=False)[0, 0]
        lowest, highest = large.min(), large.max()
        share = (large - lowest) / (highest - lowest).clamp(min=torch.finfo(torch.float32).tiny)
        grey = share.mul(255).round().to(torch.uint8).cpu()
        return Pixels(size=picture.size, data=grey[..., None].expand(-1, -1, 3).contiguous().numpy().tobytes())


def check(folder: Path) -> None:
    """Raise CheckpointRefused or CheckpointMissing where the folder is no whole network that sees depth."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointMissing(f"{folder} is incomplete: {', '.join(missing)} missing. Download the whole checkpoint.")
    if class_of(folder) not in _CLASSES:
        raise CheckpointRefused(
            f"{folder} holds no network that sees depth: it has to be one of {', '.join(_CLASSES)}."
        )
    layout.read_json(folder / preparation.FILE, Preparation)


def class_of(folder: Path) -> str:
    """The name of the folder's class, or an empty one."""
    return next(iter(layout.read_json(folder / "config.json", Config).architectures), "")
