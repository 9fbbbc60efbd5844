"""Linear layers whose weights are held in 8 bits with a scale for each row, in one of two ways.

float8 (e4m3) is cast for each product. A weight comes out within a sixteenth of itself; what its layer computes with is
the cast weight, in the usual numbers, so that rows are kept apart as ever. A scale is a number as the layer computes
in, so that float32 changes no weight.

int8 is multiplied as it is, by rows in 8 bits with a scale for each token, found as they come. Sums are whole numbers,
so that no row depends on another. Processors without instructions for it add pairs of products in 16 bits, where those
of -127 to 127 run over; -63 to 63 do not, and cost little: rows are rounded to 8 bits anyway.
What it does not know: which layers are held so, devices.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import Linear, Parameter

from fluxserve.errors import CheckpointRefused

Eighths = Literal["float8", "int8"]

_FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FLOAT8).max
#: Of a weight and of a row's number in int8; rows are stored as if they began at 0.
_LARGEST_WEIGHT, _LARGEST_NUMBER, _ZERO = 63, 127, 128
_SCALE, _ZEROS = "scale", "zeros"


def check_int8() -> None:
    """Raise CheckpointRefused where this torch cannot multiply int8."""
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (has_onednn and hasattr(torch.ops.onednn, "qlinear_pointwise")):
        raise CheckpointRefused("memory_plan = int8 needs a torch with oneDNN: choose auto, or another plan.")


def hold(layer: Linear, weight: Tensor, eighths: Eighths) -> None:
    """From now on the layer holds `weight` (width out, width in) in 8 bits; int8 on a CPU with oneDNN only."""
    if eighths == "float8":
        _hold_float8(layer, weight)
    else:
        _hold_int8(layer, weight)


def held_as(layer: Linear) -> Eighths | None:
    """How it holds its weights in 8 bits, if it does."""
    if getattr(layer, _SCALE, None) is None:
        return None
    return "int8" if _ZEROS in layer._buffers else "float8"


def scale_of(layer: Linear) -> Tensor:
    """(width out, 1), of a layer that is held in float8."""
    scale: Tensor = getattr(layer, _SCALE)
    return scale


def weight_of(layer: Linear) -> Tensor:
    """What a layer that is held in float8 multiplies by, in the numbers of its scale."""
    scale = scale_of(layer)
    return layer.weight.to(scale.dtype, copy=True).mul_(scale)


def multiply(layer: Linear, rows: Tensor) -> Tensor:
    """(..., width in) -> (..., width out) by a layer that is held in int8; what is no number stays none."""
    numbers = rows.reshape(-1, layer.in_features).float()
    largest = numbers.abs().amax(dim=1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny * _LARGEST_NUMBER)
    eighths = (numbers * (_LARGEST_NUMBER / largest)).round_().add_(_ZERO).to(torch.uint8)
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        eighths, 1 / _LARGEST_NUMBER, _ZERO, layer.weight, layer._buffers[_SCALE], layer._buffers[_ZEROS], None,
        1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    product.mul_(largest)
    if layer.bias is not None:
        product.add_(layer.bias)
    return product.to(rows.dtype).view(*rows.shape[:-1], layer.out_features)


def _hold_float8(layer: Linear, weight: Tensor) -> None:
    exact = weight.float()
    largest = exact.abs().amax(dim=1, keepdim=True)
    scale = (largest.clamp(min=torch.finfo(weight.dtype).tiny * _LARGEST) / _LARGEST).to(weight.dtype)
    eighths = (exact / scale.float()).clamp(-_LARGEST, _LARGEST).to(_FLOAT8)
    layer.weight = Parameter(eighths, requires_grad=False)
    scale_by(layer, scale)


def scale_by(layer: Linear, scale: Tensor) -> None:
    """Its weights are in 8 bits already, and `scale` (width out, 1) belongs to them."""
    layer.register_buffer(_SCALE, scale)


def _hold_int8(layer: Linear, weight: Tensor) -> None:
    exact = weight.float()
    scale = exact.abs().amax(dim=1).clamp_(min=torch.finfo(torch.float32).tiny * _LARGEST_WEIGHT) / _LARGEST_WEIGHT
    eighths = (exact / scale.unsqueeze(1)).round_().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(eighths, None)
    layer.weight = Parameter(packed, requires_grad=False)
    layer.register_buffer(_SCALE, scale)
    layer.register_buffer(_ZEROS, torch.zeros(len(scale), dtype=torch.long))
