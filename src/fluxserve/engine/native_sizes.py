"""Native sizes: the sizes a checkpoint learnt, and which of them a picture of any size is best drawn at.

A drawn picture is fitted to the size asked for (see pixels.fit): scaled, a little cut off it, or, where that would
be too much, its edges continued.
What it does not know: checkpoints, files, pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from fluxserve.catalogue import Size
from fluxserve.catalogue.sizes import cut_share, parse_ratio

#: Largest share of a drawn picture that may be cut off to make it fit; beyond it the edges are continued.
MAX_CUT = 1 / 14
#: What a cut costs beside an enlargement: 1 % cut away is as bad as sides drawn 3 % too small.
_CUT_WEIGHT = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeSizes:
    """Every size in multiples of `multiple` with `least_area` to `most_area` pixels and a shape within `ratios`.

    `ratios`: the narrowest and the widest as W:H, both included; None where every shape was learnt.
    """

    least_area: int
    most_area: int
    ratios: tuple[str, str] | None
    multiple: int

    def nearest(self, size: Size) -> Size:
        """The one to draw a picture of `size` at; there has to be one (see `all`).

        Of those that fit without continued edges, the one that is cut and scaled least.
        """
        return _nearest(self, size)

    def all(self) -> tuple[Size, ...]:
        """Every one of them; empty where the bounds contradict each other."""
        return _all(self)


@lru_cache(maxsize=1024)
def _nearest(native: NativeSizes, size: Size) -> Size:
    def loss(drawn: Size) -> tuple[bool, float]:
        cut = cut_share(drawn, size)
        scaled = abs(math.log(drawn.area / size.area)) / 2
        return cut > MAX_CUT, scaled - _CUT_WEIGHT * math.log(1 - cut)

    return min(_all(native), key=loss)


@lru_cache(maxsize=16)
def _all(native: NativeSizes) -> tuple[Size, ...]:
    narrowest, widest = _bounds(native)
    cells = native.most_area // native.multiple**2
    sizes = (
        Size(columns * native.multiple, rows * native.multiple)
        for columns in range(1, cells + 1)
        for rows in range(1, cells // columns + 1)
        if narrowest <= columns / rows <= widest
    )
    return tuple(size for size in sizes if size.area >= native.least_area)


def _bounds(native: NativeSizes) -> tuple[float, float]:
    if native.ratios is None:
        return 0.0, math.inf
    narrowest, widest = (width / height for width, height in map(parse_ratio, native.ratios))
    return narrowest, widest
