"""Latents as FLUX.1's transformer reads them: as tokens, each a patch of 2 x 2, and the places of these.

What it does not know: networks, pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: The transformer reads latents in patches of 2 x 2.
PATCH = 2


def pack(latents: Tensor) -> Tensor:
    """(1, C, 2h, 2w) -> (1, h w, 4C): each token holds a 2 x 2 patch, channel by channel."""
    rows, channels, height, width = latents.shape
    patches = latents.reshape(rows, channels, height // PATCH, PATCH, width // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(rows, height * width // PATCH**2, channels * PATCH**2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """(1, h w, 4C) -> (1, C, 2h, 2w), the inverse of `pack`."""
    rows, _, values = tokens.shape
    patches = tokens.view(rows, height, width, values // PATCH**2, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(rows, values // PATCH**2, height * PATCH, width * PATCH)


def image_places(height: int, width: int) -> Tensor:
    """(h w, 3): zero, row and column of each image token, for the rotary embedding."""
    import torch

    places = torch.zeros(height, width, 3)
    places[..., 1] = torch.arange(height)[:, None]
    places[..., 2] = torch.arange(width)[None, :]
    return places.reshape(height * width, 3)
