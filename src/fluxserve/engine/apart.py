"""Linear layers that compute each picture of a batch by itself, so that its neighbours and their number change nothing.

Libraries choose how to multiply by the shape of the whole product, and pictures that are stacked into one matrix make
another shape: other last bits. As a batch of products each picture's has the shape that it has alone, and costs no
more. That it really comes out the same is for the self-test to show (`forward`): libraries promise nothing.
What it does not know: networks, pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType

import torch
from torch import Tensor
from torch.nn import Linear, Module
from torch.nn.functional import linear

from fluxserve.engine import eight_bits
from fluxserve.engine.eight_bits import Eighths, held_as
from fluxserve.engine.faster import eighths
from fluxserve.engine.faster.switch import Switch
from fluxserve.engine.speed import PLAIN, Speed

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Forward = Callable[[Linear, Tensor], Tensor]
_TOKENS = 3  # dimensions of (rows, tokens, width); without tokens each row is one


def keep_apart(network: Module, switch: Switch | None = None, speed: Speed = PLAIN) -> None:
    """From now on every linear layer of `network` keeps the rows of its first dimension apart.

    But for throughput: there all rows are one product. Layers that hold 8 bits multiply by what those stand for or,
    where `speed` says so and the `switch` is on, in 8 bits.
    """
    product = linear if speed.throughput else multiply
    forwards = _forwards(product, switch if speed.float8 else None, apart=not speed.throughput)
    for layer in network.modules():
        if isinstance(layer, Linear):
            # A method, whose function all layers share: to a compiler they are then one layer with other weights.
            setattr(layer, "forward", MethodType(forwards[held_as(layer)], layer))  # noqa: B010 - it comes first


def _forwards(product: Product, switch: Switch | None, *, apart: bool) -> dict[Eighths | None, Forward]:
    """What a layer does, by how it holds its weights; `switch`: whether products of 8 bits are usual now."""

    def usual(layer: Linear, rows: Tensor) -> Tensor:
        return product(rows, layer.weight, layer.bias)

    def cast(layer: Linear, rows: Tensor) -> Tensor:
        return product(rows, eight_bits.weight_of(layer), layer.bias)

    def by_eighths(layer: Linear, rows: Tensor) -> Tensor:
        if switch is not None and switch.on and eighths.takes(layer, rows):
            return eighths.multiply(layer, rows, apart=apart)
        return cast(layer, rows)

    in_int8 = eight_bits.multiply  # each row is by itself as it is
    return {None: usual, "float8": cast if switch is None else by_eighths, "int8": in_int8}


def multiply(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(rows, tokens, width in) or (rows, width in) -> the same with the width out; `weight` (width out, width in)."""
    if rows.shape[0] == 1:
        return linear(rows, weight, bias)
    stacked = rows if rows.ndim == _TOKENS else rows.unsqueeze(1)
    turned = weight.t().expand(stacked.shape[0], -1, -1)
    product = torch.bmm(stacked, turned) if bias is None else torch.baddbmm(bias, stacked, turned)
    return product if rows.ndim == _TOKENS else product.squeeze(1)
