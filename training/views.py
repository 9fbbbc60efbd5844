"""What judges learn from: one thing of a set, anywhere, before anything, then spoiled as drawn pictures may be.

What it does not know: what a judge is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor

from training.backdrops import COLOURS, GROUNDS, SKIES, Backdrop, outdoors, plain
from training.classifier import SIDE
from training.layout import Layer
from training.painter import Painter
from training.records import Record
from training.render import load_sprites
from training.scenes import Facts, Scene

_MIRRORED = 0.15  # of animals: other things have a side that they show
_NEIGHBOUR = 0.15  # how often something else looks in from the edge
_LUMINANCE = (0.299, 0.587, 0.114)


class Views(NamedTuple):
    """Pictures (B, 3, H, W) with the numbers (B,) of their labels and styles."""

    pictures: Tensor
    labels: Tensor
    styles: Tensor

    def at(self, rows: Tensor) -> Views:
        """The views of these rows."""
        return Views(self.pictures[rows], self.labels[rows], self.styles[rows])


def names(records: Sequence[Record]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The labels and the styles of the records, sorted: their places are the numbers in `Views`."""
    labels, styles = {record.label for record in records}, {record.style for record in records}
    return tuple(sorted(labels)), tuple(sorted(styles))


class Viewer:
    """Endless views of the things in `sets`, uint8; the same seed shows the same."""

    def __init__(self, sets: Collection[str], seed: int, device: str = "cpu") -> None:
        sprites, self._records = load_sprites(sets)
        self._painter = Painter(sprites, device)
        self._rng = random.Random(f"views/{seed}")
        self.labels, self.styles = names(self._records)
        self._label_of = {label: number for number, label in enumerate(self.labels)}
        self._style_of = {style: number for number, style in enumerate(self.styles)}

    def draw(self, count: int) -> Views:
        """The next `count`, each of a sprite drawn at random; (count, 3, 96, 96) uint8."""
        chosen = [self._rng.randrange(len(self._records)) for _ in range(count)]
        scenes = [self._scene(index) for index in chosen]
        pictures = self._painter.paint(scenes, SIDE, SIDE).add_(1).mul_(127.5).round_().clamp_(0, 255).byte()
        records = [self._records[index] for index in chosen]
        return Views(
            pictures,
            torch.tensor([self._label_of[record.label] for record in records]),
            torch.tensor([self._style_of[record.style] for record in records]),
        )

    def _scene(self, index: int) -> Scene:
        rng, record = self._rng, self._records[index]
        layers: tuple[Layer, ...] = (_placed(rng, index, record),)
        if rng.random() < _NEIGHBOUR:
            away, along = rng.choice((-1, 1)) * rng.uniform(0.75, 0.95), rng.uniform(0.3, 0.7)
            x, y = (0.5 + away, along) if rng.random() < 0.5 else (along, 0.5 + away)
            layers = (Layer(rng.randrange(len(self._records)), x, y, 0.8), *layers)
        facts = Facts(labels=(record.label,), style=record.style)
        return compose(layers, _behind(rng), facts, seed=rng.getrandbits(32))


def _placed(rng: random.Random, index: int, record: Record) -> Layer:
    """A thing of any size, wholly in the picture, or nearly."""
    size = rng.uniform(0.45, 1.0) if rng.random() < 0.5 else rng.uniform(0.68, 0.95)
    room = (1 - size) / 2 + 0.03
    flip = record.group == "animals" and rng.random() < _MIRRORED
    return Layer(index, 0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room), size, flip=flip)


def _behind(rng: random.Random) -> Backdrop:
    chance = rng.random()
    if chance < 0.25:
        return plain("white")
    if chance < 0.5:
        return plain(rng.choice(list(COLOURS)))
    if chance < 0.65:
        colour = (rng.random(), rng.random(), rng.random())
        return plain("white")._replace(top=colour, bottom=colour)
    return outdoors(rng, rng.choice(list(SKIES)), rng.choice([*GROUNDS, None]))


def compose(layers: tuple[Layer, ...], backdrop: Backdrop, facts: Facts, caption: str = "", seed: int = 0) -> Scene:
    """A scene from its parts."""
    return Scene(
        layers=layers,
        top=backdrop.top,
        bottom=backdrop.bottom,
        ground=backdrop.ground,
        horizon=backdrop.horizon,
        waves=backdrop.waves,
        hills=backdrop.hills,
        lane=backdrop.lane,
        stars=backdrop.stars,
        clouds=backdrop.clouds,
        sun=backdrop.sun,
        seed=seed,
        caption=caption,
        facts=facts,
    )


class Spoiler:
    """Bends, shrinks, blurs, tints and stains pictures, each by its own chance."""

    def __init__(self, seed: int) -> None:
        self._chance = torch.Generator().manual_seed(seed)

    def spoil(self, pictures: Tensor, side: int) -> Tensor:
        """(B, 3, H, W) uint8 -> (B, 3, side, side) in -1 ... 1."""
        bent = self._bend(pictures.float() / 127.5 - 1, side)
        for chance, change in ((0.6, self._shrink), (0.8, self._tint), (0.4, self._stain), (0.3, self._compress)):
            rows = (self._uniform(len(bent)) < chance).nonzero()[:, 0].to(bent.device)
            if len(rows):
                bent[rows] = change(bent[rows])
        return bent.clamp_(-1, 1)

    def _bend(self, pictures: Tensor, side: int) -> Tensor:
        """Turned, sheared, stretched, and warped by a smooth field; every third picture is left straight."""
        count, strength = len(pictures), (self._uniform(len(pictures)) > 1 / 3).float()
        angle, shear, across, down, left, up = (self._normal(6, count) * strength).unbind()
        angle, shear, across, down = 0.12 * angle, 0.08 * shear, torch.exp(0.08 * across), torch.exp(0.08 * down)
        first = torch.stack([across * torch.cos(angle), -torch.sin(angle) + shear, 0.04 * left], 1)
        second = torch.stack([torch.sin(angle), down * torch.cos(angle), 0.04 * up], 1)
        grid = F.affine_grid(torch.stack([first, second], 1), [count, 3, side, side], align_corners=False)
        field = self._normal(count, 2, 5, 5) * 0.035 * strength[:, None, None, None]
        field = F.interpolate(field, (side, side), mode="bilinear", align_corners=False)
        grid = (grid + field.permute(0, 2, 3, 1)).to(pictures.device)
        return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _shrink(self, pictures: Tensor) -> Tensor:
        """To between a quarter and all of its pixels' side, and back: soft as a picture drawn small."""
        side = pictures.shape[-1]
        small = int(side * (0.28 + 0.6 * self._uniform(1).item()))
        shrunk = F.interpolate(pictures, (small, small), mode="area")
        return F.interpolate(shrunk, (side, side), mode="bilinear", align_corners=False)

    def _tint(self, pictures: Tensor) -> Tensor:
        """Gain and lift of each channel, and more or less colour; one in twelve loses all of it."""
        count = len(pictures)
        gain = 1 + 0.12 * self._normal(count, 3, 1, 1).to(pictures.device)
        lift = 0.08 * self._normal(count, 3, 1, 1).to(pictures.device)
        colour = (1 + 0.3 * self._normal(count, 1, 1, 1)).clamp(min=0)
        colour = torch.where(self._uniform(count, 1, 1, 1) < 1 / 12, torch.zeros(()), colour).to(pictures.device)
        grey = (pictures * torch.tensor(_LUMINANCE, device=pictures.device)[:, None, None]).sum(1, keepdim=True)
        return (grey + colour * (pictures - grey)) * gain + lift

    def _stain(self, pictures: Tensor) -> Tensor:
        """Blotches from a few to many pixels wide, as an undecided network leaves them."""
        count, _, height, width = pictures.shape
        cells = int(4 * 2 ** (4.5 * self._uniform(1).item()))
        noise = self._normal(count, 3, min(cells, height), min(cells, width)).to(pictures.device)
        strength = 0.18 * self._uniform(count, 1, 1, 1).to(pictures.device)
        return pictures + strength * F.interpolate(noise, (height, width), mode="bilinear", align_corners=False)

    def _compress(self, pictures: Tensor) -> Tensor:
        """Frequencies of 8 x 8 blocks rounded, the higher the coarser: what JPEG does."""
        count, channels, height, width = pictures.shape
        blocks = pictures.reshape(count, channels, height // 8, 8, width // 8, 8)
        basis = _cosines().to(pictures.device)
        turned = torch.einsum("ui,bcyixj,vj->bcyxuv", basis, blocks, basis)
        rank = torch.arange(8.0, device=pictures.device)
        step = (1 + rank[:, None] + rank[None, :]) * (0.02 + 0.08 * self._uniform(1).item())
        rounded = (turned / step).round() * step
        restored = torch.einsum("ui,bcyxuv,vj->bcyixj", basis, rounded, basis)
        return restored.reshape(count, channels, height, width)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._chance)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._chance)


def _cosines() -> Tensor:
    """(8, 8): the orthonormal discrete cosine transform, a frequency in each row."""
    frequency, place = torch.arange(8.0)[:, None], torch.arange(8.0)[None, :]
    basis = torch.cos(math.pi / 8 * (place + 0.5) * frequency) / 2
    basis[0] /= math.sqrt(2)
    return basis


def join(parts: Sequence[Views]) -> Views:
    """All of them, one after the other."""
    return Views(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
