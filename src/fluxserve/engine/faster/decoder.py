"""The decoder's filters and pictures with their channels last, as convolutions of GPUs like them best.

On a CPU filters are loaded so (`weights`). The order of memory is kept when weights are moved.
What it does not know: pictures, tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Module

_FILTER_AXES = 4


def lay_channels_last(vae: Module) -> None:
    """Of the decoder; what a convolution with such filters makes of a picture is laid out likewise."""
    import torch

    decoder: Module = vae.decoder  # type: ignore[assignment]
    for parameter in decoder.parameters():
        if parameter.ndim == _FILTER_AXES:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
