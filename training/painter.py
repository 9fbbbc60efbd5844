"""Scenes to pictures: batched torch, the same on every device; sprites are kept small and read only when needed.

What it does not know: captions, labels, why a scene looks as it does.
"""

from __future__ import annotations

import textwrap
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from training.canvases import SHRUNK
from training.landscape import paint_backdrops
from training.layout import Layer
from training.looks import hue_matrix, measure
from training.render import load_sprites
from training.scenes import Scene, SceneSampler

_LEVELS = (32, 64, 128, 256)
_CRISP = 0.9  # a level serves sprites up to its side / this many pixels


class Painter:
    """Paints scenes with premultiplied `sprites`, uint8 (N, 256, 256, 4), which may be a memory map."""

    def __init__(self, sprites: NDArray[np.uint8], device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._mips = _Mips(sprites, self._device)

    @torch.no_grad()
    def paint(self, scenes: Sequence[Scene], height: int, width: int) -> Tensor:
        """(B, 3, height, width) float32 in -1..1 on the device; B scenes that were all drawn for this shape."""
        pictures = paint_backdrops(scenes, height, width, self._device)
        depth = max(len(scene.layers) for scene in scenes)
        for order in range(depth):
            groups: dict[int, list[int]] = defaultdict(list)
            for index, scene in enumerate(scenes):
                if order < len(scene.layers):
                    groups[_level(scene.layers[order].size * min(height, width))].append(index)
            for side, indices in groups.items():
                layers = [scenes[index].layers[order] for index in indices]
                self._lay(pictures, torch.tensor(indices, device=self._device), layers, side)
        return pictures.mul_(2).sub_(1)

    def _lay(self, pictures: Tensor, indices: Tensor, layers: list[Layer], side: int) -> None:
        """Blend one layer of the pictures at `indices`, all from the mip level of `side` pixels."""
        _, _, height, width = pictures.shape
        sprites = self._mips.fetch([layer.sprite for layer in layers], side)
        if any(layer.hue for layer in layers):
            sprites = _turn_hues(sprites, layers)
        grid = functional.affine_grid(
            _placement(layers, height, width).to(self._device), [len(layers), 4, height, width], align_corners=False
        )
        laid = functional.grid_sample(sprites, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        pictures[indices] = pictures[indices] * (1 - laid[:, 3:]) + laid[:, :3]


class _Mips:
    """Sprites at halved sides, made when first asked for; the full size stays where it is unless the device is fast."""

    def __init__(self, sprites: NDArray[np.uint8], device: torch.device) -> None:
        self._sprites, self._device = sprites, device
        kept = _LEVELS if device.type != "cpu" else _LEVELS[:-1]
        self._levels = {
            side: torch.empty((len(sprites), 4, side, side), dtype=torch.uint8, device=device) for side in kept
        }
        self._is_made = torch.zeros(len(sprites), dtype=torch.bool)

    def fetch(self, indices: list[int], side: int) -> Tensor:
        """(len(indices), 4, side, side) float32 in 0..1."""
        wanted = torch.tensor(indices)
        if side not in self._levels:
            return self._read(wanted).float() / 255
        missing = torch.unique(wanted[~self._is_made[wanted]])
        if len(missing):
            self._make(missing)
        return self._levels[side][wanted.to(self._device)].float() / 255

    def _make(self, missing: Tensor) -> None:
        full = self._read(missing)
        for side in self._levels:
            small = functional.interpolate(full.float(), size=(side, side), mode="area")
            self._levels[side][missing.to(self._device)] = small.round().to(torch.uint8)
        self._is_made[missing] = True

    def _read(self, indices: Tensor) -> Tensor:
        """(n, 4, 256, 256) uint8 of the sprites at `indices`."""
        pixels = np.stack([self._sprites[index] for index in indices.tolist()])
        return torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2)


def _level(pixels: float) -> int:
    """The smallest mip level that is crisp at a longest side of `pixels`."""
    return next((side for side in _LEVELS if side >= pixels * _CRISP), _LEVELS[-1])


def _turn_hues(sprites: Tensor, layers: list[Layer]) -> Tensor:
    """Turn each sprite's colours around the grey axis; what leaves the gamut of its alpha is clipped."""
    matrices = torch.from_numpy(np.stack([hue_matrix(layer.hue) for layer in layers])).to(sprites.device)
    colours, alpha = sprites[:, :3], sprites[:, 3:]
    turned = torch.einsum("bij,bjhw->bihw", matrices, colours)
    return torch.cat([torch.minimum(turned.clamp(min=0), alpha), alpha], dim=1)


def _placement(layers: list[Layer], height: int, width: int) -> Tensor:
    """(n, 2, 3) affine maps from canvas coordinates (-1..1) to each sprite's."""
    values = torch.tensor([[y.x, y.y, y.size, float(y.flip), y.angle] for y in layers])
    x, y, size, flip, angle = values.unbind(1)
    shorter = min(height, width)
    across, down = width / (shorter * size), height / (shorter * size)
    cosine, sine, mirror = torch.cos(angle), torch.sin(angle), 1 - 2 * flip
    left, up = (1 - 2 * x) * across, (1 - 2 * y) * down
    first = torch.stack([cosine * across, sine * down, cosine * left + sine * up], 1) * mirror[:, None]
    second = torch.stack([-sine * across, cosine * down, cosine * up - sine * left], 1)
    return torch.stack([first, second], 1)


def contact_sheet(pictures: Tensor, captions: Sequence[str], columns: int) -> Image.Image:
    """(B, 3, H, W) pictures in -1..1 in rows, each with its caption below."""
    pixels = ((pictures.cpu() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    _, height, width, _ = pixels.shape
    cell = height + 40
    sheet = Image.new("RGB", (columns * (width + 6), -(-len(captions) // columns) * cell), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for index, caption in enumerate(captions):
        x, y = index % columns * (width + 6), index // columns * cell
        sheet.paste(Image.fromarray(pixels[index]), (x, y))
        draw.multiline_text(
            (x + 2, y + height + 1), "\n".join(textwrap.wrap(caption, width // 6)[:3]), fill=(0, 0, 0), font_size=11
        )
    return sheet


def main(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("sheet.png"),
    stage: Annotated[int, typer.Option(help="1, 2 or 3, as in training.")] = 3,
    count: Annotated[int, typer.Option(help="How many scenes.")] = 48,
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 0,
    height: Annotated[int, typer.Option(help="Of the canvas, pixels.")] = 512,
    width: Annotated[int, typer.Option(help="Of the canvas, pixels.")] = 512,
    held_out: Annotated[bool, typer.Option(help="Only combinations that training never shows.")] = False,
    sets: Annotated[str, typer.Option(help="Picture sets, with commas.")] = "noto,fluent3d,twemoji,streamline",
) -> None:
    """Paint seeded training scenes with their captions onto one sheet, at a quarter of the canvas's sides."""
    sprites, records = load_sprites(sets.split(","))
    sampler = SceneSampler(records, stage, seed, held_out, measure(sprites))
    scenes = [sampler.scene(index, (height, width)) for index in range(count)]
    started = time.perf_counter()
    pictures = Painter(sprites).paint(scenes, height // SHRUNK, width // SHRUNK)
    print(f"{count} scenes painted in {time.perf_counter() - started:.2f} s")
    contact_sheet(pictures, [scene.caption for scene in scenes], columns=8).save(out)


if __name__ == "__main__":
    typer.run(main)
