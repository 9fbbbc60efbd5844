"""What a FLUX transformer of diffusers does anew at every step, and need not: a tenth of a tiny network's step.

The same kernels run on the same numbers; only Python's own work around them is left out.
What it does not know: batches, steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from types import MethodType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

Rotation = tuple["Tensor", "Tensor"]
#: FLUX.2 asks for those of the texts and of the pictures apart.
_PLACES = 2


def take_shortcuts(transformer: Module) -> None:
    """Call attention without looking up its parameters' names, and rotate the same places by the same angles."""
    for lists in ("transformer_blocks", "single_transformer_blocks"):
        for block in getattr(transformer, lists):
            # Its own forward inspects the signature of the processor that it then calls with what it was given.
            setattr(block.attn, "forward", MethodType(_attend, block.attn))  # noqa: B010
    pos_embed: Module = transformer.pos_embed  # type: ignore[assignment]
    setattr(pos_embed, "forward", Remembered(pos_embed.forward))  # noqa: B010


def _attend(attn: Module, *args: Tensor | None, **kwargs: Tensor | Rotation | None) -> Tensor | tuple[Tensor, Tensor]:
    """One function for all blocks, which a compiler takes for one."""
    processor: Callable[..., Tensor | tuple[Tensor, Tensor]] = attn.processor  # type: ignore[assignment]
    return processor(attn, *args, **kwargs)


class Remembered:
    """Angles of the places asked for last: at every step of a size they are the same."""

    def __init__(self, rotate: Callable[[Tensor], Rotation]) -> None:
        self._rotate = rotate
        self._last: list[tuple[Tensor, Rotation]] = []
        self._heard: list[Rotation] | None = None
        self._said: Iterator[Rotation] | None = None

    def __call__(self, places: Tensor) -> Rotation:
        """(tokens, axes) -> cosines and sines of (tokens, width of a head)."""
        if self._said is not None:
            return next(self._said)
        angles = self._angles_of(places)
        if self._heard is not None:
            self._heard.append(angles)
        return angles

    @contextmanager
    def heard(self) -> Iterator[list[Rotation]]:
        """Inside, what is answered is written down in this list."""
        self._heard = []
        try:
            yield self._heard
        finally:
            self._heard = None

    @contextmanager
    def saying(self, angles: Sequence[Rotation]) -> Iterator[None]:
        """Inside, these are the answers in their order: no place is looked at, which would wait for the device."""
        self._said = cycle(angles)
        try:
            yield
        finally:
            self._said = None

    def _angles_of(self, places: Tensor) -> Rotation:
        for known, angles in self._last:
            if known.shape == places.shape and known.equal(places):
                return angles
        angles = self._rotate(places)
        self._last = [(places.clone(), angles), *self._last[: _PLACES - 1]]
        return angles
