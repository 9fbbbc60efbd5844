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
from fluxserve.engine.faster import eighths
from fluxserve.engine.faster.switch import Switch
from fluxserve.engine.speed import PLAIN, Speed

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
_TOKENS = 3  # dimensions of (rows, tokens, width); without tokens each row is one


def keep_apart(network: Module, switch: Switch | None = None, speed: Speed = PLAIN) -> None:
    """From now on every linear layer of `network` keeps the rows of its first dimension apart.

    But for throughput: there all rows are one product. Layers that hold 8 bits multiply by what those stand for or,
    where `speed` says so and the `switch` is on, in 8 bits.
    """
    product = linear if speed.throughput else multiply
    for layer in network.modules():
        if isinstance(layer, Linear):
            setattr(layer, "forward", _forward(layer, product, switch, speed))  # noqa: B010 - it comes first


def _forward(layer: Linear, product: Product, switch: Switch | None, speed: Speed) -> Callable[[Tensor], Tensor]:
    held = eight_bits.held_as(layer)
    if held is None:
        return partial(_multiply, product, layer)
    if held == "int8":  # each row is by itself as it is
        return partial(eight_bits.multiply, layer)
    if switch is None or not speed.float8:
        return partial(_multiply_eighths, product, layer)
    return partial(_multiply_by_eighths, product, switch, layer, apart=not speed.throughput)


def _multiply(product: Product, layer: Linear, rows: Tensor) -> Tensor:
    return product(rows, layer.weight, layer.bias)


def _multiply_eighths(product: Product, layer: Linear, rows: Tensor) -> Tensor:
    return product(rows, eight_bits.weight_of(layer), layer.bias)


def _multiply_by_eighths(product: Product, switch: Switch, layer: Linear, rows: Tensor, *, apart: bool) -> Tensor:
    if switch.on and eighths.takes(layer, rows):
        return eighths.multiply(layer, rows, apart=apart)
    return _multiply_eighths(product, layer, rows)


def multiply(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(rows, tokens, width in) or (rows, width in) -> the same with the width out; `weight` (width out, width in)."""
    if rows.shape[0] == 1:
        return linear(rows, weight, bias)
    stacked = rows if rows.ndim == _TOKENS else rows.unsqueeze(1)
    turned = weight.t().expand(stacked.shape[0], -1, -1)
    product = torch.bmm(stacked, turned) if bias is None else torch.baddbmm(bias, stacked, turned)
    return product if rows.ndim == _TOKENS else product.squeeze(1)
