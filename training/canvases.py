"""The canvases that mini learns: every size in multiples of 128 from 384 x 512 to 768 x 1408 pixels and its shapes.

What it does not know: what is painted on them.
"""

from __future__ import annotations

from functools import cache

from fluxserve.engine.native_sizes import NativeSizes

#: Height, width in pixels.
Canvas = tuple[int, int]

#: Pixels of the canvas to a token of the network, one way.
TOKEN = 128
#: How many times smaller than the canvas its pictures are painted for the latents' code, one way.
SHRUNK = 4
SMALL, LARGE = 512**2, 1024**2
_MOST_SMALL = 512 * 896
_SIZES = NativeSizes(least_area=384 * 512, most_area=768 * 1408, ratios=("6:11", "11:6"), multiple=TOKEN)


@cache
def canvases(area: int) -> tuple[Canvas, ...]:
    """Those of the small area (SMALL) or the large one (LARGE), the square of that area first."""
    found = [(size.height, size.width) for size in _SIZES.all() if (size.area <= _MOST_SMALL) == (area == SMALL)]
    return tuple(sorted(found, key=lambda canvas: _order(canvas, area)))


def _order(canvas: Canvas, area: int) -> tuple[bool, float, int]:
    height, width = canvas
    return height * width != area or height != width, width / height, height
