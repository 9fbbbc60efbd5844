"""Pictures between the levels of pixels, 0 to 255, and those of an autoencoder, -1 to 1.

What it does not know: autoencoders, latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxserve.catalogue import Size
from fluxserve.engine import soundness
from fluxserve.engine.base import Pixels

if TYPE_CHECKING:
    from torch import Tensor


def to_pixels(picture: Tensor, size: Size) -> Pixels:
    """(1, 3, height, width) as a picture of `size`. Raises BadPicture."""
    import torch

    picture = picture.float()
    soundness.check_picture(picture)
    levels = (picture / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
    rows = levels[0].permute(1, 2, 0).contiguous().cpu()
    return Pixels(size=size, data=rows.numpy().tobytes())


def to_levels(picture: Pixels) -> Tensor:
    """(1, 3, height, width) in float32, on the CPU."""
    import torch

    rows = torch.frombuffer(bytearray(picture.data), dtype=torch.uint8)
    levels = rows.view(picture.size.height, picture.size.width, 3).permute(2, 0, 1)
    return levels.float().div(255).mul(2).sub(1).unsqueeze(0)
