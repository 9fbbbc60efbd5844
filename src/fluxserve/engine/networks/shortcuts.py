"""What a FLUX transformer of diffusers does anew at every step, and need not: a tenth of a tiny network's step.

The same kernels run on the same numbers; only Python's own work around them is left out.
What it does not know: batches, steps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel
    from torch import Tensor

Rotation = tuple["Tensor", "Tensor"]
#: FLUX.2 asks for those of the texts and of the pictures apart.
_PLACES = 2


def take_shortcuts(transformer: FluxTransformer2DModel | Flux2Transformer2DModel) -> None:
    """Call attention without looking up its parameters' names, and rotate the same places by the same angles."""
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        # Its own forward inspects the signature of the processor that it then calls with what it was given.
        setattr(block.attn, "forward", partial(block.attn.processor, block.attn))  # noqa: B010
    setattr(transformer.pos_embed, "forward", Remembered(transformer.pos_embed.forward))  # noqa: B010


class Remembered:
    """Angles of the places asked for last: at every step of a size they are the same."""

    def __init__(self, rotate: Callable[[Tensor], Rotation]) -> None:
        self._rotate = rotate
        self._last: list[tuple[Tensor, Rotation]] = []

    def __call__(self, places: Tensor) -> Rotation:
        """(tokens, axes) -> cosines and sines of (tokens, width of a head)."""
        for known, angles in self._last:
            if known.shape == places.shape and known.equal(places):
                return angles
        angles = self._rotate(places)
        self._last = [(places.clone(), angles), *self._last[: _PLACES - 1]]
        return angles
