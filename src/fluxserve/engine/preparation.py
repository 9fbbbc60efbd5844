"""How a picture is prepared for a network that looks at it: what `preprocessor_config.json` of its folder says.

What it does not know: networks, what they see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from PIL import Image

from fluxserve.catalogue import Size
from fluxserve.engine import pixels as pixels_of
from fluxserve.engine.base import Pixels

if TYPE_CHECKING:
    from torch import Tensor

FILE = "preprocessor_config.json"


class _Sides(msgspec.Struct, frozen=True):
    height: int
    width: int


class Preparation(msgspec.Struct, frozen=True):
    """The size that a network looks at, how pictures get there, and how their levels from 0 to 1 are scaled.

    `keep_aspect_ratio`: not stretched to the size, but scaled as little as one of its sides asks for.
    """

    size: _Sides
    resample: int = Image.Resampling.BICUBIC
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    keep_aspect_ratio: bool = False
    ensure_multiple_of: int = 1

    def prepared(self, picture: Pixels) -> Tensor:
        """(1, 3, height, width), as the network learnt it."""
        import torch

        size = self._scaled(picture.size)
        resized = pixels_of.to_image(picture).resize((size.width, size.height), Image.Resampling(self.resample))
        levels = (
            torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(size.height, size.width, 3) / 255
        )
        return ((levels - torch.tensor(self.image_mean)) / torch.tensor(self.image_std)).permute(2, 0, 1)[None]

    def _scaled(self, size: Size) -> Size:
        across, down = self.size.width / size.width, self.size.height / size.height
        if self.keep_aspect_ratio:
            across = down = min(across, down, key=lambda scale: abs(1 - scale))
        return Size(self._whole(size.width * across), self._whole(size.height * down))

    def _whole(self, side: float) -> int:
        return max(1, round(side / self.ensure_multiple_of)) * self.ensure_multiple_of
