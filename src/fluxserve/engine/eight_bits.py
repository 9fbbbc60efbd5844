"""Linear layers whose weights are held in 8 bits (float8 e4m3) with a scale for each row, and cast for each product.

A weight comes out within a sixteenth of itself; what its layer computes with is the cast weight, in the usual numbers,
so that rows are kept apart as ever. A scale is a number as the layer computes in, so that float32 changes no weight.
What it does not know: which layers are held so, devices.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Linear, Parameter

_FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FLOAT8).max
_SCALE = "scale"


def hold(layer: Linear, weight: Tensor) -> None:
    """From now on the layer holds `weight` (width out, width in) in 8 bits."""
    exact = weight.float()
    largest = exact.abs().amax(dim=1, keepdim=True)
    scale = (largest.clamp(min=torch.finfo(weight.dtype).tiny * _LARGEST) / _LARGEST).to(weight.dtype)
    eighths = (exact / scale.float()).clamp(-_LARGEST, _LARGEST).to(_FLOAT8)
    layer.weight = Parameter(eighths, requires_grad=False)
    scale_by(layer, scale)


def scale_by(layer: Linear, scale: Tensor) -> None:
    """Its weights are in 8 bits already, and `scale` (width out, 1) belongs to them."""
    layer.register_buffer(_SCALE, scale)


def is_held(layer: Linear) -> bool:
    """Whether it holds its weights in 8 bits."""
    return getattr(layer, _SCALE, None) is not None


def scale_of(layer: Linear) -> Tensor:
    """(width out, 1), of a layer that is held so."""
    scale: Tensor = getattr(layer, _SCALE)
    return scale


def weight_of(layer: Linear) -> Tensor:
    """What a layer that is held in 8 bits multiplies by, in the numbers of its scale."""
    scale = scale_of(layer)
    return layer.weight.to(scale.dtype, copy=True).mul_(scale)
