"""How close drawn pictures are to real ones: as a whole, each to its nearest sprite, and through the autoencoder.

What it does not know: what was asked for.
"""

from __future__ import annotations

import math

import msgspec
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from diffusers import AutoencoderTiny
from torch import Tensor

from training import autoencoder, measures
from training.backdrops import plain
from training.classifier import Judge
from training.latents import Code
from training.layout import Layer
from training.painter import Painter
from training.scenes import Facts
from training.views import compose

_SIDE = 64
_PORTION = 128


class Distances(msgspec.Struct, frozen=True, kw_only=True):
    """Of a group of pictures to the nearest sprite of mini's sets: mean and percentiles."""

    mean: float
    lowest: float  # 5 %
    middle: float  # 50 %
    highest: float  # 95 %


class Sprites:
    """The first `count` sprites of a painter, each alone on white, as features and as pixels of the thing itself."""

    def __init__(self, painter: Painter, count: int, judge: Judge) -> None:
        facts, portions = Facts(labels=(), style=""), []
        for first in range(0, count, _PORTION):
            indices = range(first, min(first + _PORTION, count))
            scenes = [compose((Layer(index, 0.5, 0.5, 0.8),), plain("white"), facts) for index in indices]
            portions.append(traits(painter.paint(scenes, 2 * _SIDE, 2 * _SIDE), judge))
        self.features, self.pixels = (torch.cat(parts) for parts in zip(*portions, strict=True))

    def distances(self, features: Tensor, pixels: Tensor) -> tuple[Distances, Distances]:
        """In features and in pixels (0 ... 255): of each row to the nearest sprite."""
        return (
            _summary(measures.nearest(features, self.features)),
            _summary(127.5 * measures.nearest(pixels, self.pixels)),
        )


def traits(pictures: Tensor, judge: Judge) -> tuple[Tensor, Tensor]:
    """Features (B, 256), and pixels (B, 3 x 64 x 64) of the thing enlarged to the same box, of (B, 3, H, W)."""
    boxed = measures.boxed(pictures, _SIDE)
    return judge.look(pictures).features, boxed.flatten(1)


def _summary(distances: Tensor) -> Distances:
    lowest, middle, highest = distances.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    return Distances(mean=float(distances.mean()), lowest=lowest, middle=middle, highest=highest)


@torch.no_grad()
def reconstruction(vae: AutoencoderTiny, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio, dB, of (B, 3, H, W) encoded and decoded again."""
    return _psnr([vae.decode(vae.encode(part).latents).sample for part in torch.split(pictures, 8)], pictures)


@torch.no_grad()
def drawing(vae: AutoencoderTiny, code: Code, pictures: Tensor) -> float:
    """The same from the latents that the transformer learnt: the code of the pictures."""
    config = vae.config
    latents = [
        autoencoder.code_of(code, part) / config.scaling_factor + config.shift_factor
        for part in torch.split(pictures, 8)
    ]
    return _psnr([vae.decode(part).sample for part in latents], pictures)


def _psnr(drawn: list[Tensor], pictures: Tensor) -> float:
    return -10 * math.log10(F.mse_loss(torch.cat(drawn).float().clamp(-1, 1), pictures).item() / 4)
