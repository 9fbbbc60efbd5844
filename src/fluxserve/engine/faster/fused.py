"""Queries, keys and values as one product: three layers that read the same tokens are one of three times the width.

There is one weight, the whole layer's. The three remain as views of it, for passes that need them apart (a fine-tune's
matrices belong to one of them), so nothing takes memory twice and a moved weight is moved once.
What it does not know: attention, pictures.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter

from fluxserve.engine import eight_bits

#: The name of the whole -> of its parts, in the order in which `attention` takes them apart.
WHOLES = {"to_qkv": ("to_q", "to_k", "to_v"), "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}


class Part(Linear):
    """Some rows of a larger layer, `whole`: it has no weights of its own."""

    def __init__(self, whole: Linear, first: int, rows: int) -> None:
        Module.__init__(self)  # Linear's own would make weights
        self.in_features = whole.in_features
        self.out_features = rows
        self.__dict__["_whole"] = whole  # not registered: its weights are counted and moved once
        self._rows = slice(first, first + rows)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(width out, width in), as the whole holds it."""
        return self._of(self.__dict__["_whole"].weight)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """(width out)."""
        bias: Tensor | None = self.__dict__["_whole"].bias
        return None if bias is None else self._of(bias)

    @property
    def scale(self) -> Tensor | None:
        """Where the whole is held in 8 bits."""
        whole: Linear = self.__dict__["_whole"]
        return self._of(eight_bits.scale_of(whole)) if eight_bits.held_as(whole) else None

    def _of(self, tensor: Tensor) -> Tensor:
        return tensor[self._rows]


def fuse(transformer: Module) -> None:
    """From now on each block's attention has the wholes; those of FLUX.2's single blocks are so as published."""
    for attention in _attentions(transformer):
        for name, parts in WHOLES.items():
            layers = {part: layer for part in parts if isinstance(layer := getattr(attention, part, None), Linear)}
            if len(layers) == len(parts):
                _fuse(attention, name, layers)


def _attentions(transformer: Module) -> Iterator[Module]:
    for lists in ("transformer_blocks", "single_transformer_blocks"):
        for block in getattr(transformer, lists):
            yield block.attn


def _fuse(attention: Module, name: str, layers: dict[str, Linear]) -> None:
    whole = _stacked(list(layers.values()))
    setattr(attention, name, whole)
    first = 0
    for part, layer in layers.items():
        setattr(attention, part, Part(whole, first, layer.out_features))
        first += layer.out_features


def _stacked(layers: list[Linear]) -> Linear:
    """One layer with the weights of all below each other; those held in 8 bits keep their bits."""
    width = sum(layer.out_features for layer in layers)
    with torch.device("meta"):
        whole = Linear(layers[0].in_features, width, bias=layers[0].bias is not None)
    whole.weight = _parameter([layer.weight for layer in layers])
    if layers[0].bias is not None:
        whole.bias = _parameter([layer.bias for layer in layers])
    if eight_bits.held_as(layers[0]):
        eight_bits.scale_by(whole, torch.cat([eight_bits.scale_of(layer) for layer in layers]))
    return whole


def _parameter(tensors: list[Tensor]) -> Parameter:
    return Parameter(torch.cat(list(tensors)), requires_grad=False)
