"""An endless stream of painted pictures, without captions: for what learns to see or to draw, not to read."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from training.canvases import SHRUNK
from training.looks import measure
from training.painter import Painter
from training.render import load_sprites
from training.scenes import SceneSampler

#: The styles that mini learns to draw; the others are kept from it, for judging it.
GENERATOR_SETS = ("noto", "fluent3d", "twemoji", "streamline")


class Stream:
    """Scenes of the whole curriculum, in order; the same seed gives the same pictures."""

    def __init__(self, sets: Collection[str] | None, seed: int, device: str = "cpu") -> None:
        sprites, records = load_sprites(sets)
        self._painter = Painter(sprites, device)
        self._sampler = SceneSampler(records, stage=3, seed=seed, looks=measure(sprites))
        self._next = 0

    def draw(self, count: int, size: tuple[int, int], canvas: tuple[int, int] | None = None) -> Tensor:
        """(count, 3, *size) in -1 ... 1; `canvas` decides the layout, by default four times the size."""
        height, width = size
        canvas = canvas or (SHRUNK * height, SHRUNK * width)
        scenes = [self._sampler.scene(self._next + offset, canvas) for offset in range(count)]
        self._next += count
        return self._painter.paint(scenes, height, width).clamp(-1, 1)
