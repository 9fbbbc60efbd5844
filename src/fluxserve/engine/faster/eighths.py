"""Products of numbers in 8 bits: weights with a scale for each row, as `eight_bits` holds them, and tokens likewise.

Each token is scaled by its own largest number as it comes, so a product is one of float8 (e4m3) by float8, gathered in
float32 and scaled back. Either side comes out within a sixteenth of itself. GPUs do that in one kernel; elsewhere the
same numbers are multiplied in float32.
What it does not know: which layers do so, pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Linear, Module
from torch.nn.functional import linear

from fluxserve.engine import eight_bits

_FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FLOAT8).max
#: A scale is not smaller, so that a token of zeros stays one.
_LEAST = 1e-12
_TOKENS = 3  # dimensions of (rows, tokens, width)
#: Kernels want widths that are multiples of this.
_WIDTH = 16


def has_any(network: Module) -> bool:
    """Whether any layer of the network can multiply so."""
    layers = (layer for layer in network.modules() if isinstance(layer, Linear))
    return any(eight_bits.held_as(layer) == "float8" and _has_widths(layer) for layer in layers)


def takes(layer: Linear, rows: Tensor) -> bool:
    """Whether the layer multiplies these so: tokens by weights that are in 8 bits now, of widths that kernels take."""
    is_eighths = layer.weight.dtype is _FLOAT8
    return is_eighths and rows.ndim == _TOKENS and _has_widths(layer)


def _has_widths(layer: Linear) -> bool:
    return layer.in_features % _WIDTH == 0 == layer.out_features % _WIDTH


def multiply(layer: Linear, rows: Tensor, *, apart: bool) -> Tensor:
    """(rows, tokens, width in) -> (rows, tokens, width out); `apart`: each row of tokens by a product of its own."""
    eighths, scales = quantised(rows)
    count, tokens, _ = rows.shape
    if apart and count > 1:
        products = [_product(layer, eighths[row], scales[row], rows.dtype) for row in range(count)]
        product = torch.stack(products)
    else:
        product = _product(layer, eighths.flatten(0, 1), scales.flatten(0, 1), rows.dtype).view(count, tokens, -1)
    return product if layer.bias is None else product + layer.bias


def quantised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(..., width) -> the same in 8 bits, and what each token was divided by (..., 1), float32."""
    exact = rows.float()
    scales = (exact.abs().amax(dim=-1, keepdim=True) / _LARGEST).clamp(min=_LEAST)
    return (exact / scales).clamp(-_LARGEST, _LARGEST).to(_FLOAT8), scales


def _product(layer: Linear, eighths: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """(tokens, width in) in 8 bits and (tokens, 1) -> (tokens, width out)."""
    weight, own = layer.weight, eight_bits.scale_of(layer).float()
    if eighths.device.type == "cuda":
        return torch._scaled_mm(eighths, weight.t(), scales, own.t(), out_dtype=dtype, use_fast_accum=True)
    return (linear(eighths.float(), weight.float()) * scales * own.t()).to(dtype)
