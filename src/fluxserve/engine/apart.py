"""Linear layers that compute each picture of a batch by itself, so that its neighbours and their number change nothing.

Libraries choose how to multiply by the shape of the whole product, and pictures that are stacked into one matrix make
another shape: other last bits. As a batch of products each picture's has the shape that it has alone, and costs no
more. That it really comes out the same is for the self-test to show (`forward`): libraries promise nothing.
What it does not know: networks, pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import Linear, Module
from torch.nn.functional import linear

from fluxserve.engine import eight_bits

_TOKENS = 3  # dimensions of (rows, tokens, width); without tokens each row is one


def keep_apart(network: Module) -> None:
    """From now on every linear layer of `network` keeps the rows of its first dimension apart."""
    for layer in network.modules():
        if isinstance(layer, Linear):
            setattr(layer, "forward", partial(_own(layer), layer))  # noqa: B010 - a module's own forward comes first


def _own(layer: Linear) -> Callable[[Linear, Tensor], Tensor]:
    held = eight_bits.held_as(layer)
    if held is None:
        return _multiply
    return eight_bits.multiply if held == "int8" else _multiply_eighths  # each row of int8 is by itself as it is


def _multiply(layer: Linear, rows: Tensor) -> Tensor:
    return multiply(rows, layer.weight, layer.bias)


def _multiply_eighths(layer: Linear, rows: Tensor) -> Tensor:
    return multiply(rows, eight_bits.weight_of(layer), layer.bias)


def multiply(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(rows, tokens, width in) or (rows, width in) -> the same with the width out; `weight` (width out, width in)."""
    if rows.shape[0] == 1:
        return linear(rows, weight, bias)
    stacked = rows if rows.ndim == _TOKENS else rows.unsqueeze(1)
    turned = weight.t().expand(stacked.shape[0], -1, -1)
    product = torch.bmm(stacked, turned) if bias is None else torch.baddbmm(bias, stacked, turned)
    return product if rows.ndim == _TOKENS else product.squeeze(1)
